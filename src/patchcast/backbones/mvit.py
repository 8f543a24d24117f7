"""MViTv2: attention whose queries, keys and values are pooled by convolution."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class MViT(TimmBackbone):
    """timm's `MultiScaleVit`."""

    can = frozenset({"replace", "paint"})
    pixels_stay_in_unit = False

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = self.model.patch_embed.proj.out_channels
        self.features_prefix = int(self.model.cls_token is not None)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x, (rows, cols) = self.model.patch_embed(images)
        return Tokens(x, Grid(rows, cols))

    def add_positions(self, patches: Tokens) -> Tokens:
        x = patches.x
        if self.model.cls_token is not None:
            x = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x if self.model.pos_embed is None else x + self.model.pos_embed
        return patches.with_(x=x, prefix=self.features_prefix)

    def block_modules(self) -> list[nn.Module]:
        return [block for stage in self.model.stages for block in stage.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        x, size = tokens.x, tuple(tokens.grid)
        for stage in self.model.stages:
            x, size = stage(x, size)
        return self.model.norm(x)
