"""ConViT: convolution-like attention first, whose positions come from the number of tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.models.convit import GPSA, ConVit
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class ConViT(TimmBackbone):
    """timm's `ConVit`. Units cannot be dropped: its gated attention derives the grid from the number of tokens, so
    fewer tokens would get wrong positions without an error."""

    can = frozenset({"replace", "paint"})

    def __init__(self, model: ConVit, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size, reduction=model.patch_embed.patch_size[0])
        for module in self.model.modules():
            if isinstance(module, GPSA):  # timm makes its table in the first step, on the CPU
                module.rel_indices = module.get_rel_indices(self.model.patch_embed.num_patches)
        # The class token enters before this block; a shallower model has none.
        self.features_prefix = int(model.local_up_to_layer < len(model.blocks))

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(self.model.patch_embed(images), Grid(*self.model.patch_embed.grid_size))

    def add_positions(self, patches: Tokens) -> Tokens:
        x = patches.x + self.model.pos_embed if self.model.use_pos_embed else patches.x
        return patches.with_(x=self.model.pos_drop(x))

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        x = tokens.x
        for index, block in enumerate(self.model.blocks):
            if index == self.model.local_up_to_layer:
                x = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1)
            x = block(x)
        return self.model.norm(x)
