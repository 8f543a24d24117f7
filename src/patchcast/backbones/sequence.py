"""Models of one token sequence: `patch_embed -> _pos_embed -> norm_pre -> blocks -> norm`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import HybridEmbed
from torch import Tensor, nn

from patchcast.backbones.base import Grid, Images, Tokens, run, take
from patchcast.backbones.conventions import TimmBackbone


class Sequence(TimmBackbone):
    """What models of one sequence share: prefix tokens in front, then one token per unit, none of which is tied to its
    neighbours but through attention. So units can be dropped, and attention can be masked."""

    can = frozenset({"drop", "attend", "replace", "paint"})

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_prefix = getattr(self.model, "num_prefix_tokens", 0)  # classes that have none have no such field
        # A patch_embed that leaves the grid unflattened lets `_pos_embed` resample positions to any size.
        self.takes_any_size = getattr(self.model, "dynamic_img_size", False)

    def to_patches(self, images: Images) -> Tokens:
        x = self.model.patch_embed(images)
        if x.ndim == 4:
            return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")
        return Tokens(x, self.grid(images))

    def run_stages(self, tokens: Tokens) -> Any:
        return self.model.norm(run(self.model.blocks, tokens.x, self.model, **tokens.block_kwargs))

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        prefix, units = tokens.x[:, : tokens.prefix], tokens.x[:, tokens.prefix :]
        return tokens.with_(
            x=torch.cat([prefix, take(units, visible)], dim=1),
            visible=visible,
            block_kwargs=self.positions_of(visible, tokens),
        )

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        """The `block_kwargs` that fit the visible units; as they are where positions were added to the tokens."""
        return dict(tokens.block_kwargs)

    def obey(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        # Only a mask that is given is passed on: the unmasked call is then timm's own, to the bit.
        mask = {"is_causal": True} if can_see is None else {"attn_mask": can_see}
        return tokens.with_(block_kwargs={**tokens.block_kwargs, **mask})


class ViT(Sequence):
    """timm's plain `VisionTransformer`: ViT, DeiT, CLIP, SigLIP, DINOv2, AIMv2 towers; hybrids with a CNN stem.

    >>> import timm
    >>> backbone = ViT(timm.create_model("test_vit"))
    >>> backbone.units(torch.zeros(2, 3, 160, 160)).shape
    torch.Size([2, 100, 64])
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        patch_embed = self.model.patch_embed
        if isinstance(patch_embed, HybridEmbed):  # a ResNet or ViTamin stem, whose kernels overlap
            self.pixels_stay_in_unit = False
        else:
            self.stride = tuple(patch_embed.patch_size)

    def add_positions(self, patches: Tokens) -> Tokens:
        x = self.model.norm_pre(self.model._pos_embed(patches.x))
        return patches.with_(x=x, prefix=self.features_prefix, layout="NLC")


class RoPE(Sequence):
    """timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, and ViTs with axial or mixed rotary positions.

    >>> import timm
    >>> backbone = RoPE(timm.create_model("vit_tiny_patch16_dinov3_qkvb", img_size=64, depth=1))
    >>> tokens = backbone.keep(backbone.embed(torch.zeros(1, 3, 64, 64)), torch.tensor([[3, 9]]))
    >>> tokens.x.shape, tokens.prefix, tokens.block_kwargs["rope"].shape
    (torch.Size([1, 7, 192]), 5, torch.Size([1, 1, 2, 128]))
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.stride = tuple(self.model.patch_embed.patch_size)
        self.rope_per_block = self.model.rope_mixed

    def add_positions(self, patches: Tokens) -> Tokens:
        x, rope = self.model._pos_embed(patches.x)
        kwargs = {} if rope is None else {"rope": rope}
        return patches.with_(x=self.model.norm_pre(x), prefix=self.features_prefix, layout="NLC", block_kwargs=kwargs)

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        rope = tokens.block_kwargs.get("rope")
        if rope is None or not self.rope_per_block:
            return super().run_stages(tokens)
        x = tokens.x
        for block, rotation in zip(self.model.blocks, rope, strict=True):  # every block learnt its own rotation
            x = run([block], x, self.model, **{**tokens.block_kwargs, "rope": rotation})
        return self.model.norm(x)

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        kwargs = super().positions_of(visible, tokens)
        if "rope" in kwargs:
            kwargs["rope"] = take_rope(kwargs["rope"], visible)
        return kwargs


def lower_triangle(tokens: Tokens) -> Bool[Tensor, "L L"]:
    """Each token sees itself and those before it, for attention that has no `is_causal` of its own."""
    length = tokens.x.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=tokens.x.device).tril()


def take_rope(rope: Float[Tensor, "*depth_heads N R"], visible: Int[Tensor, "B V"]) -> Float[Tensor, "..."]:
    """Rotations of the visible units: (N, R) to (B, 1, V, R), or (depth, heads, N, R) to (depth, B, heads, V, R).

    >>> take_rope(torch.zeros(9, 4), torch.tensor([[0, 8]])).shape
    torch.Size([1, 1, 2, 4])
    """
    if rope.ndim == 2:
        return rope[visible][:, None]
    return rope[:, :, visible].transpose(1, 2)
