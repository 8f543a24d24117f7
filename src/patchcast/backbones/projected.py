"""The vision encoders of DeepSeek-VL and Qwen-VL, and their classifiers: axial RoPE, and a feature map out.

Some classifiers end in the language model's projector, which merges r x r tokens into one feature. There a unit is
such a block of tokens: the tokens of kept units stay block by block, so that the projector merges the right ones.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.changes import is_plain
from patchcast.backbones.conventions import nominal_size
from patchcast.backbones.sequence import Sequence, take_rope
from patchcast.geometry import Grid


class Projected(Sequence):
    """timm's `DeepseekVitEncoder`, `DeepseekVitClassifier`, `Qwen3VitEncoder` and `Qwen3VitClassifier`."""

    written_out: ClassVar = {"": frozenset({"_pos_embed"}), "encoder": frozenset({"_pos_embed"})}

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size or nominal_size(getattr(model, "encoder", model)))
        # Only the classifiers' forward_features include the projector; the encoders' stop before it.
        names = ["aligner", "merger"] if self.encoder is not model else []
        self.projector_name = next((name for name in names if getattr(self.encoder, name, None) is not None), None)
        self.merged = 1 if self.projector is None else self.projector.hidden_size // self.encoder.embed_dim
        self.merged = round(self.merged**0.5)
        rows, cols = self.encoder.patch_embed.patch_size
        self.stride = (rows * self.merged, cols * self.merged)
        self.embed_width = self.encoder.embed_dim
        self.takes_any_size = True
        self.features_layout = "NHWC" if self.projector is None else "NLC"
        for block in self.encoder.blocks:
            if type(block).__name__ == "DeepseekVitBlock" and is_plain(block):  # by name: timm 1.0.26 has no such class
                block.__class__ = MaskedDeepseekBlock

    @property
    def encoder(self) -> Any:
        return getattr(self.model, "encoder", self.model)

    @property
    def projector(self) -> Any:
        return None if self.projector_name is None else getattr(self.encoder, self.projector_name)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.encoder.patch_embed(images)
        return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")

    def place(self, patches: Tokens) -> Tokens:
        x, rope = self.encoder._pos_embed(patches.x)
        return patches.with_(x=x, layout="NLC", block_kwargs={"rope": rope})

    def block_modules(self) -> list[nn.Module]:
        return [*self.encoder.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B ..."]:
        x = apply_blocks(self.encoder.blocks, tokens.x, self.encoder, **tokens.block_kwargs)
        if hasattr(self.encoder, "norm"):  # Qwen's has none
            x = self.encoder.norm(x)
        if tokens.visible is None:
            x = x.unflatten(1, tokens.grid)
        else:  # the blocks that were kept, side by side: an image of one row of units
            x = x.unflatten(1, (-1, self.merged, self.merged)).transpose(1, 2).flatten(2, 3)
        return x if self.projector is None else self.projector(x)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        return super().select(tokens, self.tokens_of(visible, tokens.grid)).with_(visible=visible)

    def tokens_of(self, units: Int[Tensor, "B V"], grid: Grid) -> Int[Tensor, "B T"]:
        """Indices of the r x r tokens of each unit, unit by unit."""
        r = self.merged
        row, col = units // (grid.cols // r) * r, units % (grid.cols // r) * r
        step = torch.arange(r, device=units.device)
        return ((row[..., None, None] + step[:, None]) * grid.cols + col[..., None, None] + step).flatten(1)

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        return {**tokens.block_kwargs, "rope": take_rope(tokens.block_kwargs["rope"], visible)}

    def length(self, tokens: Tokens) -> int:
        return tokens.x.shape[1] // self.merged**2

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        if self.merged == 1:
            return super().mask_attention(tokens, can_see)
        unit = torch.arange(self.length(tokens), device=tokens.x.device)
        if can_see is None:
            can_see = unit[:, None] >= unit
        rows = unit.repeat_interleave(self.merged**2)  # the unit of each token, where they stand unit by unit
        if tokens.visible is None:
            rows = torch.empty_like(rows).scatter_(0, self.tokens_of(unit[None], tokens.grid)[0], rows)
        return super().mask_attention(tokens, can_see[..., rows[:, None], rows])

    def unused(self) -> list[str]:
        if self.encoder is self.model:
            return ["aligner", "merger"]
        return super().unused()


class MaskedDeepseekBlock(nn.Module):
    """timm's `DeepseekVitBlock`, whose attention takes a mask but which does not pass one on."""

    norm1: nn.Module
    attn: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    drop_path2: nn.Module

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rope: Float[Tensor, "..."] | None = None,
        attn_mask: Float[Tensor, "*B L L"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B L D"]:
        x = x + self.drop_path1(self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal))
        return x + self.drop_path2(self.mlp(self.norm2(x)))
