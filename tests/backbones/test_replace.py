"""Hidden units: nothing of their pixels reaches any feature."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from patchcast.geometry import upsample
from tests.backbones.zoo import NAMES, assert_same, flat, images_for, marked, small


@pytest.mark.parametrize("name", marked(NAMES))
def test_hidden_pixels_move_nothing(name: str) -> None:
    backbone = deepcopy(small(name)).train()  # batch statistics included
    images = images_for(backbone)
    grid = backbone.grid(images)
    is_hidden = torch.zeros(len(images), *grid, dtype=torch.bool)
    is_hidden[0, 0, 0] = is_hidden[1, -1] = True
    other = torch.where(upsample(is_hidden, backbone.image_size)[:, None], torch.randn_like(images), images)
    token = torch.randn(backbone.embed_width, requires_grad=True)
    out = []
    for each in (images, other):
        torch.manual_seed(0)
        out.append(backbone.forward_stages(backbone.embed(each, is_hidden=is_hidden, mask_token=token)))
    assert_same(*out)
    sum(each.pow(2).sum() for each in flat(out[0])).backward()
    assert token.grad is not None
    assert token.grad.any()


@pytest.mark.parametrize("name", marked(NAMES))
def test_nothing_hidden_changes_nothing(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    nothing = torch.zeros(len(images), *backbone.grid(images), dtype=torch.bool)
    with torch.no_grad():
        plain = backbone.forward_stages(backbone.embed(images))
        token = torch.randn(backbone.embed_width)
        assert_same(backbone.forward_stages(backbone.embed(images, is_hidden=nothing, mask_token=token)), plain)


def test_a_mask_of_another_grid_is_refused() -> None:
    backbone = small("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"is_hidden is \(2, 2\), but these images have 4x6 units"):
        backbone.embed(images_for(backbone), is_hidden=torch.zeros(2, 2, 2, dtype=torch.bool))
