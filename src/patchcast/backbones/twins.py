"""Twins: local and global attention, with a convolution for positions after the first block of each stage."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class Twins(TimmBackbone):
    """timm's `Twins` (PCPVT and SVT)."""

    can = frozenset({"replace", "paint"})
    takes_any_size = True

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = self.model.patch_embeds[0].proj.out_channels

    def to_patches(self, images: ImageBatch) -> Tokens:
        x, (rows, cols) = self.model.patch_embeds[0](images)
        return Tokens(x, Grid(rows, cols))

    def add_positions(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model.pos_drops[0](patches.x))

    def block_modules(self) -> list[nn.Module]:
        return [block for blocks in self.model.blocks for block in blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B N D"]:
        model, x, size = self.model, tokens.x, tuple(tokens.grid)
        for index, blocks in enumerate(model.blocks):
            if index > 0:
                x = x.reshape(len(x), *size, -1).permute(0, 3, 1, 2).contiguous()
                x, size = model.patch_embeds[index](x)
                x = model.pos_drops[index](x)
            x = model.pos_block[index](blocks[0](x, size), size)
            for block in blocks[1:]:
                x = block(x, size)
        return model.norm(x)
