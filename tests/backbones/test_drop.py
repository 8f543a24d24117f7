"""Dropped units: what stays keeps its position."""

from __future__ import annotations

import pytest
import torch

from patchcast.geometry import paint, take
from tests.backbones.zoo import able, images_for, scaled, small


@pytest.mark.parametrize("name", able("drop"))
def test_all_units_in_another_order_give_the_same_features(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    order = torch.stack([torch.randperm(backbone.grid(images).units) for _ in images])
    with torch.no_grad():
        whole = backbone.embed(images)
        prefix, units = backbone.split(backbone.forward_stages(whole), whole)
        tokens = backbone.keep(whole, order)
        prefix_again, shuffled = backbone.split(backbone.forward_stages(tokens), tokens)
    assert scaled(shuffled, take(units, order)) < 1e-5
    if prefix.shape[1]:
        assert scaled(prefix_again, prefix) < 1e-5


@pytest.mark.parametrize("name", [name for name in able("drop") if name in able("attend")])
def test_visible_units_alone_are_as_if_the_others_were_masked(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    count = backbone.grid(images).units
    visible = torch.stack([torch.randperm(count)[: count // 3] for _ in images])
    with torch.no_grad():
        whole = backbone.embed(images)
        seen = torch.zeros(len(images), count, dtype=torch.bool).scatter_(1, visible, True)
        seen = torch.cat([torch.ones(len(images), whole.prefix, dtype=torch.bool), seen], dim=1)
        can_see = seen[:, None, None].expand(-1, 1, seen.shape[1], -1)
        masked = backbone.split(backbone.forward_stages(whole, can_see=can_see), whole)[1]
        tokens = backbone.keep(whole, visible)
        dropped = backbone.split(backbone.forward_stages(tokens), tokens)[1]
    assert scaled(dropped, take(masked, visible)) < 1e-5


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_small_abswin_256"])
def test_hiera_drops_mask_units_as_timm_does(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    visible = torch.tensor([[0, 2, 5], [1, 3, 4]])
    keep = torch.zeros(2, 6, dtype=torch.bool).scatter_(1, visible, True)
    with torch.no_grad():
        theirs = backbone.model.forward_features(images, mask=keep)
        tokens = backbone.keep(backbone.embed(paint(images, ~keep.view(2, 2, 3))), visible)
        assert torch.equal(backbone.forward_stages(tokens), theirs)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hiera_tiny_224", "tnt_s_patch16_224"])
def test_units_are_dropped_once(name: str) -> None:
    backbone = small(name)
    tokens = backbone.keep(backbone.embed(images_for(backbone)), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="dropped already"):
        backbone.keep(tokens, torch.zeros(2, 1, dtype=torch.long))
