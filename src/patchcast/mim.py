"""The API of timm's issue 2540 on masked image modeling: `embed` and `forward_stages` as methods of a model."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchcast.backbones.adapters import wrap
from patchcast.backbones.backbone import Backbone, CannotError, ImageBatch, Tokens
from patchcast.plans import RandomMask

Model = TypeVar("Model", bound=nn.Module)
BACKBONE = "_patchcast_backbone"


def patch_model_for_mim(model: Model) -> Model:
    """Give a model of timm or torchvision the methods `embed` and `forward_stages`.

    `model.forward_stages(model.embed(images))` is `model.forward_features(images)`, to the bit. `embed` returns
    `Tokens`, since for about 100 architectures the positions are no part of the tensor, and takes `is_hidden` and
    `mask_token` as `Backbone.embed` does; `forward_stages` takes the masks of `Backbone.forward_stages`. Parameters,
    names and the model's own methods do not change, and a copy of the model has its own `embed` and `forward_stages`.

    >>> import timm
    >>> model = patch_model_for_mim(timm.create_model("test_vit")).eval()
    >>> images = torch.randn(1, 3, 160, 160)
    >>> bool(torch.equal(model.forward_stages(model.embed(images)), model.forward_features(images)))
    True

    Returns:
        the same model.
    Raises:
        ValueError: if no adapter knows the model, or it has a method of one of these names already.
    """
    taken = [name for name in ("embed", "forward_stages") if BACKBONE not in vars(model) and hasattr(model, name)]
    if taken:
        raise ValueError(f"{type(model).__name__} already has a method {taken[0]!r}")
    # Not registered as a submodule, which would make a cycle of modules; still copied and pickled with the model.
    vars(model)[BACKBONE] = wrap(model)
    vars(model)["embed"] = MethodType(embed, model)
    vars(model)["forward_stages"] = MethodType(forward_stages, model)
    return model


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone of a patched model."""
    return vars(model)[BACKBONE]


def embed(
    self: nn.Module,
    images: ImageBatch,
    *,
    is_hidden: Bool[Tensor, "B rows cols"] | None = None,
    mask_token: Float[Tensor, " E"] | None = None,
) -> Tokens:
    """The input of the first block, hidden units replaced by a mask token before positions are added."""
    return backbone_of(self).embed(images, is_hidden=is_hidden, mask_token=mask_token)


def forward_stages(self: nn.Module, tokens: Tokens, **masks: Any) -> Any:
    """Blocks and final norm: what the model's own `forward_features` returns."""
    backbone = backbone_of(self)
    return backbone.own_features(backbone.forward_stages(tokens, **masks))


class MaskedImageModelingWrapper(nn.Module):
    """A model in which a random share of the units of each image is replaced by a mask token.

    `int(N * (1 - mask_ratio))` of N units are kept. In `mask`, 0 is masked and 1 is kept, as in the text of the issue;
    its code does the opposite. Hidden pixels are blanked too: in overlapping stems they would reach neighboring tokens.

    >>> import timm
    >>> wrapper = MaskedImageModelingWrapper(timm.create_model("test_vit"), 0.75, "learnable")
    >>> output, mask, ids_restore = wrapper(torch.randn(2, 3, 160, 160))
    >>> output.shape, mask.sum(dim=1).tolist(), ids_restore.shape
    (torch.Size([2, 101, 64]), [25.0, 25.0], torch.Size([2, 100]))

    Args:
        model: of timm or torchvision; it is patched if it was not.
        mask_ratio: share of units masked, in (0, 1).
        mask_token_init: "learnable": a parameter, normal with deviation 0.02; "zero": zeros, which are not learned.
    Raises:
        CannotError: if the model takes no mask token.
        ValueError: if the ratio is not in (0, 1), or `mask_token_init` is something else.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_ratio: float = 0.75,
        mask_token_init: str = "zero",
    ) -> None:
        super().__init__()
        if mask_token_init not in ("zero", "learnable"):
            raise ValueError(f"mask_token_init is 'zero' or 'learnable'; got {mask_token_init!r}")
        self.backbone: Any = model if BACKBONE in vars(model) else patch_model_for_mim(model)
        backbone = backbone_of(model)
        if "replace" not in backbone.can:
            raise CannotError(backbone.cannot("replace"))
        self.plan = RandomMask(mask_ratio)
        token = torch.zeros(backbone.embed_width)
        self.mask_token = nn.Parameter(token.normal_(std=0.02)) if mask_token_init == "learnable" else None

    @property
    def mask_ratio(self) -> float:
        return self.plan.ratio

    def forward(
        self, images: ImageBatch, return_mask: bool = True, *, generator: torch.Generator | None = None
    ) -> Any | tuple[Any, Float[Tensor, "B N"], Int[Tensor, "B N"]]:
        """What `forward_features` returns of the masked images, one row or place for each unit, masked or not.

        Args:
            return_mask: return `(output, mask, ids_restore)`, and otherwise the output alone.
            generator: on the CPU, to draw masks from.
        Returns:
            the output; `mask`, 0 where a unit is masked and 1 where it is kept, row by row; and `ids_restore`, which
            puts `[kept units, masked units]`, each row by row, back in order: `torch.gather` along them.
        """
        backbone = backbone_of(self.backbone)
        pixels = images if isinstance(images, Tensor) else next(iter(images.values()))
        plan = self.plan(backbone.grid(images), len(pixels), generator).to(pixels.device)
        tokens = self.backbone.embed(images, is_hidden=plan.is_hidden, mask_token=self.mask_token)
        output = self.backbone.forward_stages(tokens)
        if not return_mask:
            return output
        ids_shuffle = torch.cat([plan.visible, plan.hidden[:, 0]], dim=1)
        return output, (~plan.is_hidden).flatten(1).float(), ids_shuffle.argsort(dim=1)
