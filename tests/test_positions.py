"""Sine-cosine positions: their layout, and a table that starts from them."""

from __future__ import annotations

import pytest
import torch

from patchcast.backbones import Grid, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.positions import sincos_positions


def test_each_position_is_itself_wherever_the_grid_ends() -> None:
    """A grid that is a corner of another has the same positions there."""
    large = sincos_positions(Grid(6, 9), 16).unflatten(0, (6, 9))
    assert torch.equal(sincos_positions(Grid(3, 4), 16), large[:3, :4].flatten(0, 1))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_vit", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_base_patch16_siglip_224", 0)],
)
def test_start_from_sincos(name: str, prefix: int) -> None:
    backbone = wrap(name, img_size=(32, 64), **({} if name == "test_vit" else {"depth": 1}))
    assert start_from_sincos(backbone)
    table = backbone.model.pos_embed[0]
    assert table.requires_grad
    assert not table[:prefix].any()
    assert torch.equal(table[prefix:], sincos_positions(Grid(2, 4), backbone.width))


def test_registers_without_rows_of_their_own_are_left_alone() -> None:
    backbone = wrap("vit_small_patch14_reg4_dinov2", img_size=42, depth=1)
    assert start_from_sincos(backbone)
    assert torch.equal(backbone.model.pos_embed[0], sincos_positions(Grid(3, 3), 384))


def test_a_model_without_a_table_says_so() -> None:
    assert not start_from_sincos(wrap("vit_tiny_patch16_224", pos_embed="none", depth=1))
