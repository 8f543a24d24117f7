"""Attention masks: what a token may not see does not move it at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import Bool, Float
from timm.layers import set_fused_attn
from torch import Tensor

from patchcast.backbones import Backbone, CannotError
from tests.backbones.zoo import BY_NAME, able, build, images_for, small


@pytest.fixture(params=["fused", "unfused"])
def fused(request: pytest.FixtureRequest) -> Iterator[bool]:
    set_fused_attn(request.param == "fused")
    yield request.param == "fused"
    set_fused_attn(True)


def features(backbone: Backbone, moved: int | None, can_see: Bool[Tensor, "*B L L"] | None) -> Float[Tensor, "B V D"]:
    """Features of all units under the mask (causal if None), with the input of one unit moved."""
    images = images_for(backbone)
    if moved is not None and backbone.pixels_stay_in_unit:
        row, col = divmod(moved, backbone.grid(images).cols)
        down, right = backbone.stride
        images[..., row * down : (row + 1) * down, col * right : (col + 1) * right] += 1.0
    with torch.no_grad():
        tokens = backbone.embed(images)
        if moved is not None and not backbone.pixels_stay_in_unit:  # the stem would carry it to the neighbors
            tokens.x[:, tokens.prefix + moved] += torch.linspace(-1, 1, tokens.x.shape[-1])
        out = backbone.forward_stages(tokens, can_see=can_see, is_causal=can_see is None)
        return backbone.split(out, tokens)[1]


def causal(backbone: Backbone) -> Bool[Tensor, "L L"]:
    tokens = backbone.embed(images_for(backbone))
    length = tokens.prefix + backbone.grid(backbone.image_size).units
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("name", able("attend"))
def test_no_leak(name: str, fused: bool) -> None:
    backbone = build(name, **BY_NAME[name])
    can_see = causal(backbone)
    count = backbone.grid(backbone.image_size).units
    prefix = len(can_see) - count
    prefix_lm = can_see.clone()
    prefix_lm[:, : prefix + count // 3] = True
    for mask, first in ((None, 1), (can_see, 1), (prefix_lm, count // 3)):
        still = features(backbone, None, mask)
        for moved in (first, count // 2, count - 1):
            difference = (features(backbone, moved, mask) - still).abs().amax((0, 2))
            assert not difference[:moved].any(), "a unit moved that cannot see the change"
            assert (difference[moved:] > 0).all(), "a unit did not move that can see the change"
    seen_by_first = (features(backbone, count // 3 - 1, prefix_lm) - still).abs().amax((0, 2))[0]
    assert seen_by_first > 0, "units of the prefix see one another"


@pytest.mark.parametrize("name", able("attend"))
def test_is_causal_is_the_lower_triangle(name: str) -> None:
    backbone = small(name)
    assert torch.allclose(features(backbone, None, None), features(backbone, None, causal(backbone)), atol=1e-5)


@pytest.mark.parametrize("name", able("attend"))
def test_every_image_may_have_its_own_mask(name: str) -> None:
    backbone = small(name)
    lower = causal(backbone)
    everything = torch.ones_like(lower)
    both = torch.stack([lower, everything])[:, None]
    mixed = features(backbone, None, both)
    torch.testing.assert_close(mixed[0], features(backbone, None, lower)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], features(backbone, None, everything)[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], features(backbone, None, everything)[0], atol=1e-5)


def test_a_row_that_sees_nothing_is_refused() -> None:
    backbone = small("vit_tiny_patch16_224")
    blind = causal(backbone)
    blind[3] = False
    with pytest.raises(ValueError, match="has no True"):
        features(backbone, None, blind)


def test_a_mask_without_the_prefix_tokens_is_refused() -> None:
    backbone = small("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="can_see is for 24 tokens; there are 25: 1 prefix tokens and 24 units"):
        features(backbone, None, causal(backbone)[1:, 1:])


def test_both_masks_are_refused() -> None:
    backbone = small("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="not both"):
        backbone.forward_stages(backbone.embed(images_for(backbone)), can_see=causal(backbone), is_causal=True)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convit_tiny", "hiera_tiny_224"])
def test_masks_are_refused_with_what_the_backbone_can_do(name: str) -> None:
    backbone = small(name)
    tokens = backbone.embed(images_for(backbone))
    for mask in ({"is_causal": True}, {"can_see": torch.ones(4, 4, dtype=torch.bool)}):
        with pytest.raises(CannotError, match=r"cannot apply any attention mask.*it can .*replace"):
            backbone.forward_stages(tokens, **mask)
