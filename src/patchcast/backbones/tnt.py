"""TNT: a small transformer over the pixels of each patch, inside a large one over the patches."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, checkpoint
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid, take, upsample


class TNT(TimmBackbone):
    """timm's `TNT`. `Tokens.x` is (pixel tokens of every patch, patch tokens); a mask token replaces the former."""

    can = frozenset({"drop", "replace", "paint"})
    features_prefix = 1

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = self.model.pixel_embed.proj.out_channels
        # The legacy variants unfold after a 7x7 convolution over the whole image.
        self.pixels_stay_in_unit = not self.model.pixel_embed.legacy

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(self.model.pixel_embed(images, self.model.pixel_pos), Grid(*self.model.pixel_embed.grid_size))

    def fill(
        self, patches: Tokens, is_hidden: Bool[Tensor, "B rows cols"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        token = patches.x.new_zeros(patches.x.shape[-1]) if mask_token is None else mask_token
        hidden = upsample(is_hidden, patches.grid).flatten()  # pixel tokens are ordered as (image and patch, pixel)
        return patches.with_(x=torch.where(hidden[:, None, None], token, patches.x))

    def add_positions(self, patches: Tokens) -> Tokens:
        model, pixels = self.model, patches.x
        x = pixels.reshape(-1, patches.grid.units, pixels.shape[1] * pixels.shape[2])
        x = model.norm2_proj(model.proj(model.norm1_proj(x)))
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.patch_pos
        return patches.with_(x=(pixels, model.pos_drop(x)), prefix=1)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        pixels, x = tokens.x
        for block in self.model.blocks:
            pixels, x = checkpoint(block, pixels, x) if self.model.grad_checkpointing else block(pixels, x)
        return self.model.norm(x)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        pixels, x = tokens.x
        by_patch = pixels.reshape(len(x), -1, pixels.shape[1] * pixels.shape[2])
        inner = take(by_patch, visible).reshape(-1, *pixels.shape[1:])
        return tokens.with_(x=(inner, torch.cat([x[:, :1], take(x[:, 1:], visible)], dim=1)), visible=visible)
