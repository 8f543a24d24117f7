"""CrossViT: two streams of tokens, of small and of large patches, that exchange class tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.crossvit import scale_image
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid, put, upsample


class CrossViT(TimmBackbone):
    """timm's `CrossVit`.

    The two grids do not align (20x20 and 14x14 for a 240 px image). Units are the small patches. The features of the
    large patches are resampled to their grid and concatenated. A mask token is split into one part per stream.
    """

    can = frozenset({"replace", "paint"})
    pixels_stay_in_unit = False
    features_prefix = 1

    def __init__(self, model: Any, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size, reduction=model.patch_embed[0].patch_size[0])
        self.widths = [table.shape[-1] for table in (self.model.pos_embed_0, self.model.pos_embed_1)]
        self.width = self.embed_width = sum(self.widths)
        self.grids = [
            Grid(embed.img_size[0] // embed.patch_size[0], embed.img_size[1] // embed.patch_size[1])
            for embed in self.model.patch_embed
        ]
        self.stride = (self.image_size[0] // self.grids[0].rows, self.image_size[1] // self.grids[0].cols)

    def to_patches(self, images: ImageBatch) -> Tokens:
        scaled = [scale_image(images, size, self.model.crop_scale) for size in self.model.img_size_scaled]
        x = [embed(image) for embed, image in zip(self.model.patch_embed, scaled, strict=True)]
        return Tokens(x, self.grids[0])

    def fill(
        self, patches: Tokens, is_hidden: Bool[Tensor, "B rows cols"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        parts = [None] * len(self.widths) if mask_token is None else mask_token.split(self.widths)
        streams = zip(patches.x, self.grids, parts, strict=True)
        return patches.with_(x=[put(x, upsample(is_hidden, grid), part, "NLC") for x, grid, part in streams])

    def add_positions(self, patches: Tokens) -> Tokens:
        model, embedded = self.model, []
        tables = [(model.cls_token_0, model.pos_embed_0), (model.cls_token_1, model.pos_embed_1)]
        for x, (cls_token, positions) in zip(patches.x, tables, strict=True):
            x = torch.cat([cls_token.expand(len(x), -1, -1), x], dim=1) + positions
            embedded.append(model.pos_drop(x))
        return patches.with_(x=embedded, prefix=1)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> list[Tensor]:
        streams = tokens.x
        for block in self.model.blocks:
            streams = block(streams)
        return [norm(x) for norm, x in zip(self.model.norm, streams, strict=True)]

    def split(self, features: list[Tensor], tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        small, large = features
        coarse = large[:, 1:].transpose(1, 2).unflatten(2, self.grids[1])
        resampled = F.interpolate(coarse, size=self.grids[0], mode="bilinear", align_corners=False)
        units = torch.cat([small[:, 1:], resampled.flatten(2).transpose(1, 2)], dim=-1)
        return torch.cat([small[:, :1], large[:, :1]], dim=-1), units

    def prefix_only(self) -> list[str]:
        # Streams exchange class tokens after the blocks of a stage; after the last stage, no unit sees them.
        last = f"blocks.{len(self.model.blocks) - 1}"
        return [f"{last}.{part}" for part in ("projs", "fusion", "revert_projs")]
