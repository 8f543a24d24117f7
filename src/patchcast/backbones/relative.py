"""Beit and VisionTransformerRelPos: a learned bias per pair of positions, added inside every attention.

Their attention takes no mask, and has its bias for the whole grid only. It gets a subclass (by `__class__`, so that
parameters and keys do not change) that reads both from the argument in which timm passes a shared bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models import beit, vision_transformer_relpos
from torch import Tensor

from patchcast.backbones.backbone import Tokens
from patchcast.backbones.changes import is_plain
from patchcast.backbones.sequence import Sequence, lower_triangle


@dataclass(frozen=True)
class Bias:
    """What is added to the attention logits.

    Attributes:
        shared: the bias that all blocks share.
        present: indices of the tokens that were not dropped; None for all.
        can_see: True where the token of the row may attend to the token of the column.
    """

    shared: Float[Tensor, "1 heads N N"] | None = None
    present: Int[Tensor, "B L"] | None = None
    can_see: Bool[Tensor, "*B L L"] | None = None

    def added_to(self, own: Float[Tensor, "1 heads N N"] | None) -> Float[Tensor, "*B heads L L"] | None:
        """The sum of all of it and the block's own bias."""
        bias = self.shared if own is None else own if self.shared is None else own + self.shared
        if bias is not None and self.present is not None:
            row, col = self.present[:, :, None], self.present[:, None, :]
            bias = bias[0][:, row, col].transpose(0, 1)
        if self.can_see is None or bias is None:
            return self.can_see if bias is None else bias
        return bias.masked_fill(~self.can_see, float("-inf"))


class Relative(Sequence):
    """The base of both; `argument` is timm's name for the shared bias."""

    argument: str
    takes_tiles = True

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        kwargs: dict[str, Any] = dict(tokens.block_kwargs)
        bias: Bias = kwargs[self.argument]
        if bias.present is None and bias.can_see is None:
            kwargs[self.argument] = bias.shared  # then timm's own attention runs, to the bit
        return super().run_stages(tokens.with_(block_kwargs=kwargs))

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        prefix = torch.arange(tokens.prefix, device=visible.device).expand(len(visible), -1)
        present = torch.cat([prefix, visible + tokens.prefix], dim=1)
        return {self.argument: replace(tokens.block_kwargs[self.argument], present=present)}

    def kwargs_of(self, rows: Int[Tensor, "B K"], tokens: Tokens) -> dict[str, Any]:
        return {self.argument: replace(tokens.block_kwargs[self.argument], present=rows)}

    def positions_like(self, kwargs: Mapping[str, Any], own: Int[Tensor, "b L"]) -> dict[str, Any]:
        return {self.argument: replace(kwargs[self.argument], present=own)}

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        can_see = lower_triangle(tokens) if can_see is None else can_see
        bias = replace(tokens.block_kwargs[self.argument], can_see=can_see)
        return tokens.with_(block_kwargs={self.argument: bias})


class Beit(Relative):
    """timm's `Beit`: BEiT and BEiT v2."""

    argument = "shared_rel_pos_bias"

    def __init__(self, model: beit.Beit, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_prefix = 1
        for block in model.blocks:
            if is_plain(block.attn):
                block.attn.__class__ = BeitAttention

    def place(self, patches: Tokens) -> Tokens:
        model = self.model
        x = torch.cat([model.cls_token.expand(len(patches.x), -1, -1), patches.x], dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed
        shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
        return patches.with_(x=model.pos_drop(x), prefix=1, block_kwargs={self.argument: Bias(shared)})


class RelPos(Relative):
    """timm's `VisionTransformerRelPos`."""

    argument = "shared_rel_pos"

    def __init__(
        self, model: vision_transformer_relpos.VisionTransformerRelPos, image_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(model, image_size)
        for block in model.blocks:
            if is_plain(block.attn):
                block.attn.__class__ = RelPosAttention

    def place(self, patches: Tokens) -> Tokens:
        x, model = patches.x, self.model
        if model.cls_token is not None:
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
        shared = None if model.shared_rel_pos is None else model.shared_rel_pos.get_bias()
        return patches.with_(x=x, prefix=self.features_prefix, block_kwargs={self.argument: Bias(shared)})


class BeitAttention(beit.Attention):
    """timm's attention, with the bias of the remaining tokens and a mask."""

    q_bias: Any
    k_bias: Any
    v_bias: Any

    def forward(
        self, x: Float[Tensor, "B L D"], shared_rel_pos_bias: Bias | Tensor | None = None
    ) -> Float[Tensor, "B L D"]:
        if not isinstance(shared_rel_pos_bias, Bias):
            return super().forward(x, shared_rel_pos_bias)
        bias = None if self.q_bias is None else torch.cat([self.q_bias, self.k_bias, self.v_bias])
        q, k, v = split_heads(F.linear(x, self.qkv.weight, bias), self.num_heads)
        own = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()
        return attend(self, q, k, v, shared_rel_pos_bias.added_to(own))


class RelPosAttention(vision_transformer_relpos.RelPosAttention):
    """timm's attention, with the bias of the remaining tokens and a mask."""

    q_norm: Any
    k_norm: Any
    rel_pos: Any

    def forward(self, x: Float[Tensor, "B L D"], shared_rel_pos: Bias | Tensor | None = None) -> Float[Tensor, "B L D"]:
        if not isinstance(shared_rel_pos, Bias):
            return super().forward(x, shared_rel_pos)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if self.rel_pos is None:
            bias = shared_rel_pos.added_to(None)
        else:  # timm ignores the shared bias where a block has its own
            bias = replace(shared_rel_pos, shared=None).added_to(self.rel_pos.get_bias())
        return attend(self, self.q_norm(q), self.k_norm(k), v, bias)


def split_heads(qkv: Float[Tensor, "B L E"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as (B, heads, L, head width) each."""
    q, k, v = qkv.unflatten(-1, (3, count, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "B L D"]:
    """Attention with a bias, and the output projection of timm's module."""
    dropout = attention.attn_drop.p if attention.training else 0.0
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return attention.proj_drop(attention.proj(x.transpose(1, 2).flatten(2)))
