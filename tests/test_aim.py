"""AIM's orders, masks and heads, beyond what every method is held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchcast.backbones import wrap
from patchcast.methods import ORDERS, aim
from patchcast.plans import RandomOrder, RasterOrder
from patchcast.predictors import MLPHead
from patchcast.pretrainer import Pretrainer
from tests import contracts


def small(**options: Any) -> Pretrainer:
    torch.manual_seed(0)
    backbone = wrap("test_vit", img_size=16, patch_size=4, in_chans=1, depth=2)
    return aim(backbone, **{"head_depth": 1, "head_width": 64, **options})


def fit(pretrainer: Pretrainer, images: Tensor, steps: int) -> float:
    """The loss after some steps on one batch, always in new orders."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = pretrainer(images, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_random_order_can_be_learned_only_if_the_target_is_told() -> None:
    """One image, the same in every batch: who knows which unit is asked for knows the answer."""
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    told, untold = small(plan=RandomOrder(), normalize=False), small(plan=RandomOrder(), normalize=False)
    assert isinstance(untold.predictor, MLPHead)
    untold.predictor.query = None
    assert fit(told, image, 200) < 0.1
    assert fit(untold, image, 200) > 0.5


def test_the_paper_needs_no_query() -> None:
    for name, order in ORDERS.items():
        head = small(plan=order).predictor
        assert isinstance(head, MLPHead)
        assert (head.query is None) == isinstance(order, RasterOrder), name


def test_the_head_on_a_width_that_positions_cannot_have() -> None:
    """Sine-cosine positions need a width divisible by 4."""
    pretrainer = aim(wrap("test_vit", img_size=32, patch_size=8, depth=2, embed_dim=90, num_heads=3), head_depth=1)
    assert pretrainer.predictor.embed.out_features == 88
    assert pretrainer(torch.randn(2, 3, 32, 32)).loss.isfinite()


def test_a_linear_head_is_refused_a_random_order() -> None:
    with pytest.raises(ValueError, match="give head_depth >= 1"):
        small(plan=RandomOrder(), head_depth=0)


@pytest.mark.parametrize("name", ORDERS)
def test_every_named_order_is_honest(name: str) -> None:
    contracts.check_no_leak(small(plan=ORDERS[name]))


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The masks of every call of torch's fused attention."""
    calls: list[dict[str, Any]] = []
    real = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any) -> Tensor:
        calls.append({"attn_mask": attn_mask, "is_causal": is_causal})
        return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


def test_the_causal_order_uses_the_fused_causal_kernel(attention: list[dict[str, Any]]) -> None:
    pretrainer = small(plan=RasterOrder(random_prefix=False))
    pretrainer(contracts.images_for(pretrainer)).loss.backward()
    assert len(attention) == len(pretrainer.backbone.model.blocks)
    assert all(call == {"attn_mask": None, "is_causal": True} for call in attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefixes_use_one_mask(attention: list[dict[str, Any]], dtype: torch.dtype) -> None:
    """In the form in which attention keeps it, or each block would make and keep another."""
    pretrainer = small()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plan = pretrainer(contracts.images_for(pretrainer)).plan
    masks = [call["attn_mask"] for call in attention]
    assert all(mask is masks[0] for mask in masks), "made once, for all blocks"
    assert masks[0].dtype == dtype
    assert masks[0].shape == (2, 1, 17, 17)
    assert torch.equal(masks[0] == 0, plan.can_see(1))
    assert torch.equal(masks[0] == -torch.inf, ~plan.can_see(1))


@pytest.mark.parametrize("name", ORDERS)
def test_gradient_checkpointing_keeps_the_mask(name: str, attention: list[dict[str, Any]]) -> None:
    """In training timm's own forward skips checkpointing under a mask."""
    pretrainer = small(plan=ORDERS[name])
    pretrainer.backbone.model.set_grad_checkpointing(True)
    pretrainer.train()
    loss = pretrainer(contracts.images_for(pretrainer)).loss
    forward = list(attention)
    loss.backward()
    again = attention[len(forward) :]
    assert len(again) == len(forward), "every block is run again in the backward pass"
    for call in again:
        assert call["is_causal"] == forward[0]["is_causal"]
        assert call["attn_mask"] is forward[0]["attn_mask"]
