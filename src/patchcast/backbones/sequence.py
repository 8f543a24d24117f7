"""Models of one token sequence: `patch_embed -> _pos_embed -> patch_drop -> norm_pre -> blocks -> norm`."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from timm.models import VisionTransformer
from timm.models._manipulate import checkpoint
from torch import Tensor

from patchcast.backbones.base import Backbone, Grid, Tokens, take


class ViT(Backbone):
    """timm's plain `VisionTransformer`: ViT, DeiT, CLIP, SigLIP, DINOv2, AIMv2 towers.

    >>> import timm
    >>> backbone = ViT(timm.create_model("test_vit"))
    >>> backbone.units(torch.zeros(2, 3, 160, 160)).shape
    torch.Size([2, 100, 64])
    """

    can = frozenset({"drop", "attend", "replace", "paint"})
    model: VisionTransformer

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__(model)
        self.width = self.embed_width = model.embed_dim
        rows, cols = model.patch_embed.patch_size
        self.stride = (rows, cols)
        self.image_size = tuple(model.patch_embed.img_size)
        self.channels = model.in_chans

    def to_patches(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        x = self.model.patch_embed(images)
        if x.ndim == 4:  # dynamic_img_size leaves the grid unflattened until positions are added
            return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")
        return Tokens(x, Grid(*self.model.patch_embed.grid_size))

    def add_positions(self, patches: Tokens) -> Tokens:
        x = self.model.norm_pre(self.model.patch_drop(self.model._pos_embed(patches.x)))
        return patches.with_(x=x, prefix=self.model.num_prefix_tokens, layout="NLC")

    def keep(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        prefix, units = tokens.x[:, : tokens.prefix], tokens.x[:, tokens.prefix :]
        return tokens.with_(x=torch.cat([prefix, take(units, visible)], dim=1), visible=visible)

    def forward_stages(
        self, tokens: Tokens, *, can_see: Bool[Tensor, "*B L L"] | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        if can_see is not None and is_causal:
            raise ValueError("give can_see or is_causal, not both: timm drops one of them silently")
        # Only a mask that is given is passed on: the unmasked call is then timm's own, to the bit.
        mask = {"attn_mask": can_see} if can_see is not None else {"is_causal": True} if is_causal else {}
        x = tokens.x
        for block in self.model.blocks:
            # timm's forward_features forgets gradient checkpointing as soon as a mask is given; this loop does not.
            x = checkpoint(block, x, **mask) if self.model.grad_checkpointing else block(x, **mask)
        return self.model.norm(x)

    def split(
        self, features: Float[Tensor, "B L D"], tokens: Tokens
    ) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        return features[:, : tokens.prefix], features[:, tokens.prefix :]

    def unused(self) -> list[str]:
        return ["head", "fc_norm", "attn_pool"]
