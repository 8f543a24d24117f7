"""Models whose class token enters after the blocks, by class attention: CaiT, XCiT and VOLO."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from timm.models import cait
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.changes import is_plain
from patchcast.backbones.conventions import TimmBackbone
from patchcast.backbones.sequence import Sequence, lower_triangle
from patchcast.geometry import Grid


class CaiT(Sequence):
    """timm's `Cait`. A mask applies to the units. The class token then attends to all units, and no unit to it."""

    def __init__(self, model: cait.Cait, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_prefix = int(model.blocks_token_only is not None)
        for block in model.blocks:
            if is_plain(block) and is_plain(block.attn):
                block.__class__, block.attn.__class__ = MaskedBlock, MaskedTalkingHeads

    def place(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model.pos_drop(patches.x + self.model.pos_embed))

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        x = apply_blocks(self.model.blocks, tokens.x, self.model, **tokens.block_kwargs)
        if self.model.blocks_token_only is not None:
            cls_token = self.model.cls_token.expand(len(x), -1, -1)
            for block in self.model.blocks_token_only:
                cls_token = block(x, cls_token)
            x = torch.cat([cls_token, x], dim=1)
        return self.model.norm(x)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks, *(self.model.blocks_token_only or ())]

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        can_see = lower_triangle(tokens) if can_see is None else can_see
        return tokens.with_(block_kwargs={"can_see": can_see})

    def prefix_only(self) -> list[str]:
        return ["cls_token", "blocks_token_only"]


class MaskedBlock(cait.LayerScaleBlock):
    """timm's block, which passes a mask to its attention."""

    def forward(self, x: Float[Tensor, "B L D"], can_see: Bool[Tensor, "*B L L"] | None = None) -> Tensor:
        if can_see is None:
            return super().forward(x)
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), can_see))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class MaskedTalkingHeads(cait.TalkingHeadAttn):
    """timm's attention, with a mask."""

    def forward(self, x: Float[Tensor, "B L D"], can_see: Bool[Tensor, "*B L L"] | None = None) -> Tensor:
        if can_see is None:
            return super().forward(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.proj_l((q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = logits.masked_fill(~can_see, float("-inf")).softmax(dim=-1)
        # proj_w has a bias, which would give hidden tokens a weight again.
        weights = self.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * can_see
        x = (self.attn_drop(weights) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


class XCiT(TimmBackbone):
    """timm's `Xcit`: attention between channels, and convolutions between neighboring units."""

    can = frozenset({"replace", "paint"})
    takes_any_size = True
    pixels_stay_in_unit = False

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_prefix = int(self.model.cls_attn_blocks is not None)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x, (rows, cols) = self.model.patch_embed(images)
        return Tokens(x, Grid(rows, cols))

    def add_positions(self, patches: Tokens) -> Tokens:
        x, (rows, cols) = patches.x, patches.grid
        if self.model.pos_embed is not None:
            x = x + self.model.pos_embed(len(x), rows, cols).reshape(len(x), -1, x.shape[1]).permute(0, 2, 1)
        return patches.with_(x=self.model.pos_drop(x), block_kwargs={"H": rows, "W": cols})

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        x = apply_blocks(self.model.blocks, tokens.x, self.model, **tokens.block_kwargs)
        if self.model.cls_attn_blocks is not None:
            x = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1)
            x = apply_blocks(self.model.cls_attn_blocks, x, self.model)
        return self.model.norm(x)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks, *(self.model.cls_attn_blocks or ())]

    def prefix_only(self) -> list[str]:
        parts = ["cls_token"]
        for index, block in enumerate(self.model.cls_attn_blocks or ()):
            own = ["attn", "gamma2", "mlp"] if block.tokens_norm else ["attn", "gamma2", "mlp", "norm2"]
            parts += [f"cls_attn_blocks.{index}.{name}" for name in own]
        return parts


class Volo(TimmBackbone):
    """timm's `VOLO`. Its positions are added after the second stage, so they are part of the stages."""

    can = frozenset({"replace", "paint"})
    written_out: ClassVar = {"": frozenset({"forward_tokens", "forward_cls", "forward_train"})}
    pixels_stay_in_unit = False

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = self.model.patch_embed.proj.out_channels
        self.features_prefix = int(self.model.post_network is not None)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed(images).permute(0, 2, 3, 1)
        return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")

    def run_stages(self, tokens: Tokens) -> Any:
        x = self.model.forward_tokens(tokens.x)
        return self.model.norm(x if self.model.post_network is None else self.model.forward_cls(x))

    def prefix_only(self) -> list[str]:
        return ["cls_token", "post_network"]

    def unused(self) -> list[str]:
        return [*super().unused(), "aux_head"]
