"""What timm's models have in common, read from their attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.changes import check_methods, foreign_parts, is_plain, warn_of_foreign


class TimmBackbone(Backbone):
    """A timm model whose widths and sizes have timm's usual attribute names; adapters override what differs.

    Attributes:
        written_out: see `check_methods`.
    Raises:
        ValueError: if the model does not compute what timm's class does, or its units do not divide its image.
    """

    written_out: ClassVar[Mapping[str, frozenset[str]]] = {"": frozenset()}

    def __init__(
        self, model: nn.Module, image_size: tuple[int, int] | None = None, *, reduction: int | None = None
    ) -> None:
        check_methods(model, self.written_out)
        super().__init__(model)
        if any(name in STEMS and not is_plain(stem) for name, stem in self.model.named_children()):
            self.pixels_stay_in_unit = False  # nobody knows how far its kernels reach
        blocks = getattr(getattr(model, "encoder", model), "blocks", ())
        if self.can & {"drop", "attend"} and (foreign := foreign_parts(blocks)):
            self.can = self.can - {"drop", "attend"}
            warn_of_foreign(self.name, foreign)
        self.channels = channels_of(model)
        self.image_size = image_size or nominal_size(model)
        self.width = self.embed_width = self.model.num_features
        self.set_stride(reduction or self.model.feature_info[-1]["reduction"])

    def set_stride(self, reduction: int) -> None:
        """Pixels per unit, where each halving rounds up: 224 pixels reduced by 64 are 4 units of 56 pixels."""
        height, width = self.image_size
        rows, cols = -(-height // reduction), -(-width // reduction)
        if height % rows or width % cols:
            whole = (height // reduction * reduction, width // reduction * reduction)
            raise ValueError(
                f"the units of this {self.name}, of {reduction} pixels, do not divide {height}x{width}; "
                f"build it with img_size={whole}"
            )
        self.stride = (height // rows, width // cols)
        if self.stride != (reduction, reduction):  # another size would have units of another size
            self.takes_any_size = False


STEMS = ("patch_embed", "patch_embed1", "pixel_embed", "embeds")

# Attributes that hold the size that a model was built for: (rows, cols), and the pixels of each.
BUILT: dict[str, Callable[[Any], tuple[Any, int]]] = {
    "CoaT": lambda model: (model.patch_embed1.img_size, 1),
    "EfficientFormerV2": lambda model: (model.stages[-1].downsample.attn.resolution, 16),
    "GlobalContextVit": lambda model: (model.stages[0].feat_size, 4),
    "Levit": lambda model: (model.stages[0].blocks[0].attn.resolution, model.stem.stride),
    "MultiScaleVit": lambda model: (model.stages[0].feat_size, model.patch_embed.proj.stride[0]),
    "TNT": lambda model: (model.pixel_embed.img_size, 1),
    "VOLO": lambda model: (model.pos_embed.shape[1:3], model.feature_info[1]["reduction"]),
}


def built_size(model: nn.Module) -> tuple[int, int] | None:
    """The (height, width) that a timm model was built for, if it stores it."""
    for cls in type(model).__mro__:
        if cls.__name__ in BUILT:
            (rows, cols), pixels = BUILT[cls.__name__](model)
            return rows * pixels, cols * pixels
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None) or getattr(model, "img_size", None)
    return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


def nominal_size(model: nn.Module) -> tuple[int, int]:
    """The (height, width) that a timm model was built for, or else pretrained at."""
    size = built_size(model)
    if size is None:
        config = getattr(model, "pretrained_cfg", None)
        if not config:
            raise ValueError(f"{type(model).__name__} does not store its image size; give img_size to wrap")
        size = (config["input_size"][1], config["input_size"][2])
    return size


def channels_of(model: Any) -> int:
    """Image channels: timm's attribute, or in older versions of timm those of the first convolution."""
    if hasattr(model, "in_chans"):
        return model.in_chans
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def width_after(stem: nn.Module, channels: int, size: tuple[int, int], dim: int) -> int:
    """Number of channels that `stem` outputs."""
    return on_meta(stem, channels, size).shape[dim]


def on_meta(
    module: nn.Module, channels: int, size: tuple[int, int], parameters: Mapping[str, Tensor] | None = None
) -> Any:
    """The output of `module` for two images on the meta device: shapes only, nothing is computed.

    Args:
        parameters: used instead of its own; on the meta device.
    """
    own = {name: tensor.detach().to("meta") for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    images = torch.empty(2, channels, *size, device="meta")
    return torch.func.functional_call(module, {**own, **(parameters or {})}, (images,))
