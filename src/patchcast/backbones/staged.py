"""Hierarchical and hybrid models: `stem -> stages -> tail`, one row of a table each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.layers.non_local_attn import BatNonLocalAttn
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.conventions import TimmBackbone, on_meta, width_after
from patchcast.backbones.painted import FeatureMap
from patchcast.geometry import Grid, Layout


class StageRow(NamedTuple):
    """The attributes in which a timm class holds its parts.

    Attributes:
        stem: attribute that makes the tokens of the first stage.
        stages: attribute that holds the stages.
        tail: attributes that `forward_features` calls after them.
        layout: of the tokens.
        features_layout: of what the tail returns.
        any_size: whether the model takes images of other sizes, however it was built.
        overlaps: whether the stem's kernels reach over the border of a unit.
    """

    stem: str = "stem"
    stages: str = "stages"
    tail: tuple[str, ...] = ()
    layout: Layout = "NCHW"
    features_layout: Layout = "NCHW"
    any_size: bool = True
    overlaps: bool = True


ROWS: dict[str, StageRow] = {
    "ByobNet": StageRow(tail=("final_conv",)),
    "CPUBone": StageRow(),
    "CSATv2": StageRow("stem_dct", overlaps=False),
    "DaVit": StageRow(tail=("norm_pre",)),
    "EdgeNeXt": StageRow(tail=("norm_pre",), overlaps=False),
    "EfficientFormer": StageRow(tail=("norm",), features_layout="NLC", any_size=False),
    "EfficientFormerV2": StageRow(tail=("norm",), any_size=False),
    "EfficientVit": StageRow(),
    "EfficientVitLarge": StageRow(),
    "EfficientVitMsra": StageRow("patch_embed", any_size=False),  # before timm 1.0.31
    "FastVit": StageRow(tail=("final_conv",)),
    "FocalNet": StageRow(stages="layers", tail=("norm",), overlaps=False),
    "GlobalContextVit": StageRow(any_size=False),
    "IFormer": StageRow(),
    "Levit": StageRow(any_size=False),
    "LowFormer": StageRow(),
    "MaxxVit": StageRow(tail=("norm",), any_size=False),
    "MetaFormer": StageRow(),
    "Nest": StageRow("patch_embed", "levels", any_size=False, overlaps=False),
    "NextViT": StageRow(tail=("norm",)),
    "PyramidVisionTransformerV2": StageRow("patch_embed", layout="NHWC"),
    "SHViT": StageRow("patch_embed"),
    "SwiftFormer": StageRow(tail=("norm",)),
    "SwinTransformer": StageRow("patch_embed", "layers", ("norm",), "NHWC", "NHWC", overlaps=False),
    "SwinTransformerV2": StageRow("patch_embed", "layers", ("norm",), "NHWC", "NHWC", overlaps=False),
    "SwinTransformerV2Cr": StageRow("patch_embed", overlaps=False),
    "TinyVit": StageRow("patch_embed"),
}


class Staged(TimmBackbone):
    """Any class of `ROWS`.

    >>> import timm, torch
    >>> backbone = Staged(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)))
    >>> backbone.units(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 49, 768])
    """

    can = frozenset({"replace", "paint"})

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        self.row = next(ROWS[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in ROWS)
        self.takes_any_size = self.row.any_size and not self.has_fixed_size(model)
        self.pixels_stay_in_unit = not self.row.overlaps
        super().__init__(model, image_size)
        self.features_layout = self.row.features_layout
        channel_dim = -1 if self.row.layout == "NHWC" else 1
        self.embed_width = width_after(getattr(model, self.row.stem), self.channels, self.image_size, channel_dim)

    @staticmethod
    def has_fixed_size(model: Any) -> bool:
        """Whether this model takes one size only, although its class can take any."""
        return False

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = getattr(self.model, self.row.stem)(images)
        rows, cols = x.shape[1:3] if self.row.layout == "NHWC" else x.shape[2:]
        return Tokens(x, Grid(rows, cols), layout=self.row.layout)

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B ..."]:
        stages = getattr(self.model, self.row.stages)
        recompute = getattr(self.model, "grad_checkpointing", False)  # some classes hold the flag in their stages
        x = apply_blocks(stages, tokens.x, self.model) if recompute else stages(tokens.x)
        for name in self.row.tail:
            x = getattr(self.model, name)(x)
        return x

    def block_modules(self) -> list[nn.Module]:
        """The blocks of each stage, or the whole stage if its blocks have another name."""
        stages = getattr(self.model, self.row.stages)
        return [block for stage in stages for block in dict(stage.named_children()).get("blocks", [stage])]

    def unused(self) -> list[str]:
        return [*super().unused(), "classifier", "pre_classifier", "in_conv"]


class Levit(Staged):
    """timm's `Levit` and `LevitDistilled`: its linear form takes one row per token, its convolutional form a map."""

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_layout = "NCHW" if self.model.use_conv else "NLC"

    def to_patches(self, images: ImageBatch) -> Tokens:
        patches = super().to_patches(images)
        return patches if self.model.use_conv else patches.with_(x=patches.x.flatten(2).transpose(1, 2), layout="NLC")


class EdgeNeXt(Staged):
    """timm's `EdgeNeXt`, which makes a mask for its positions in every step, on the default device.

    A copy from the CPU would make a GPU wait.
    """

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B D H W"]:
        if tokens.x.device.type == "cpu":
            return super().run_stages(tokens)
        with tokens.x.device:
            return super().run_stages(tokens)


class Nest(Staged):
    """timm's `Nest`, whose final norm takes channels last."""

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B D H W"]:
        return self.model.norm(super().run_stages(tokens).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Swin(Staged):
    """timm's three Swins, which take any size when they are built with `strict_img_size=False`."""

    @staticmethod
    def has_fixed_size(model: Any) -> bool:
        return model.patch_embed.strict_img_size


# For a map of the size that they were built for, or of a multiple of some number of units.
ATTENTION = (BatNonLocalAttn, BottleneckAttn, HaloAttn, LambdaLayer, MobileVitV2Block)


class Byob(Staged):
    """timm's `ByobNet`: MobileViT, and convolutional networks, some with attention.

    Models with attention do not store the size that they were built for. Which sizes they take depends on their parts,
    so sizes are tried on the meta device, where nothing is computed.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        self.passed: dict[tuple[int, int], bool] = {}
        super().__init__(model, image_size)
        self.has_attention = any(isinstance(module, ATTENTION) for module in model.modules())
        if not self.has_attention:
            return
        if not self.passes(self.image_size):
            step = self.stride[0]
            squares = ((side, side) for side in range(step, 33 * step, step))
            self.image_size = next((size for size in squares if self.passes(size)), self.image_size)
        height, width = self.image_size
        self.takes_any_size = self.passes((2 * height, width))

    def grid(self, images: ImageBatch | tuple[int, int]) -> Grid:
        grid = super().grid(images)
        size = (grid.rows * self.stride[0], grid.cols * self.stride[1])
        if self.has_attention and not torch.compiler.is_compiling() and not self.passes(size):
            raise ValueError(f"the attention of this {self.name} does not take images of {size[0]}x{size[1]} pixels")
        return grid

    def passes(self, size: tuple[int, int]) -> bool:
        """Whether images of this size give one feature per unit."""
        if size not in self.passed:
            units = (size[0] // self.stride[0], size[1] // self.stride[1])
            try:
                self.passed[size] = tuple(on_meta(FeatureMap(self.model), self.channels, size).shape[2:]) == units
            except (AssertionError, RuntimeError, ValueError):
                self.passed[size] = False
        return self.passed[size]
