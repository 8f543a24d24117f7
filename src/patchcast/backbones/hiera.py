"""Hiera and SAM 2's HieraDet: windows of tokens that are pooled from stage to stage."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid, take


class Hiera(TimmBackbone):
    """timm's `Hiera`. A unit is what the paper calls a mask unit: 8x8 tokens that are pooled into one.

    Hidden pixels must be blanked before units are dropped, because the 7x7 stem reaches over the border of a unit. The
    result then equals timm's own `forward_features(images, mask=...)`.
    """

    can = frozenset({"drop", "replace", "paint"})
    written_out: ClassVar = {"": frozenset({"_pos_embed"})}
    pixels_stay_in_unit = False

    def __init__(self, model: Any, image_size: tuple[int, int] | None = None) -> None:
        tokens, patch = model.tokens_spatial_shape, model.patch_stride
        super().__init__(model, (tokens[0] * patch[0], tokens[1] * patch[1]))
        if model.patch_drop_rate:
            raise ValueError("Hiera drops mask units itself (patch_drop_rate): build it without, and use `keep`")
        self.embed_width = model.patch_embed.proj.out_channels
        self.stride = tuple(size * step for size, step in zip(model.mask_unit_size, patch, strict=True))

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(self.model.patch_embed(images), Grid(*self.model.tokens_spatial_shape))

    def add_positions(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model.unroll(self.model._pos_embed(patches.x)))

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B V D"]:
        return apply_blocks(self.model.blocks, tokens.x, self.model)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        # Unrolled tokens are ordered as (position inside the unit, unit).
        inside = tokens.x.unflatten(1, (self.model.mu_size, -1))
        flat = inside.transpose(1, 2).flatten(2)
        rows = take(flat, visible).unflatten(2, (self.model.mu_size, -1)).transpose(1, 2)
        return tokens.with_(x=rows.flatten(1, 2), visible=visible)


class HieraDet(TimmBackbone):
    """timm's `HieraDet` (SAM 2): Hiera's blocks over a map of tokens, with padded windows."""

    can = frozenset({"replace", "paint"})
    written_out: ClassVar = {"": frozenset({"_pos_embed"})}
    pixels_stay_in_unit = False
    takes_any_size = True
    features_layout = "NHWC"

    def __init__(self, model: Any, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = model.patch_embed.proj.out_channels

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed(images)
        return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")

    def add_positions(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model._pos_embed(patches.x))

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B H W D"]:
        return apply_blocks(self.model.blocks, tokens.x, self.model)
