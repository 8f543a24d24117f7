"""Locality: paint one unit, and see which tokens and which units move. Equality cannot see a wrong layout."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from patchcast.backbones import Backbone, Tokens
from patchcast.geometry import to_rows
from tests.backbones.zoo import NAMES, images_for, marked, small

# Here a change is carried everywhere at once, by channel attention, squeeze-excite or folding into few patches.
GLOBAL = frozenset({"ByobNet", "CoaT", "GlobalContextVit", "Xcit"})


@pytest.mark.parametrize("name", marked(NAMES))
def test_tokens_stand_where_their_pixels_were(name: str) -> None:
    backbone = small(name)
    before, after, (row, col) = painted(backbone)
    grid = backbone.grid(backbone.image_size)
    with torch.no_grad():
        moved = (as_map(backbone, backbone.embed(after)) - as_map(backbone, backbone.embed(before))).abs().amax((0, 3))
    rows, cols = moved.shape
    inside = torch.zeros_like(moved, dtype=torch.bool)
    top, left, high, wide = row * rows / grid.rows, col * cols / grid.cols, rows / grid.rows, cols / grid.cols
    inside[round(top) : round(top + high), round(left) : round(left + wide)] = True
    assert moved[inside].min() > 0
    if backbone.pixels_stay_in_unit:
        assert not moved[~inside].any()
    elif not inside.all():
        assert moved[inside].mean() > 2 * moved[~inside].mean()


@pytest.mark.parametrize("name", marked(NAMES, but=GLOBAL))
def test_units_stand_where_their_pixels_were(name: str) -> None:
    backbone = small(name)
    before, after, (row, col) = painted(backbone)
    with torch.no_grad():
        moved = (backbone.units(after) - backbone.units(before)).norm(dim=-1)[0]
    own = moved[row * backbone.grid(backbone.image_size).cols + col]
    if backbone.pixels_stay_in_unit:
        assert own == moved.max()
    else:  # a neighbour may move a little more
        assert own > 0.7 * moved.max()
        assert own > moved.mean()


def painted(backbone: Backbone) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Images, the same with one unit off the diagonal painted, and which."""
    images = images_for(backbone, batch=1)
    grid, (down, right) = backbone.grid(images), backbone.stride
    row, col = (0, grid.cols - 1) if grid.rows < 3 else (1, grid.cols - 1)
    after = images.clone()
    after[..., row * down : (row + 1) * down, col * right : (col + 1) * right] += 1
    return images, after, (row, col)


def as_map(backbone: Backbone, tokens: Tokens) -> Float[Tensor, "B rows cols D"]:
    """The tokens that the first block gets, as rows and columns."""
    x = tokens.x[-1] if isinstance(tokens.x, tuple) else tokens.x[0] if isinstance(tokens.x, list) else tokens.x
    if type(backbone.model).__name__ == "Hiera":
        return backbone.model.reroll(x, 0)
    return to_rows(x, tokens.layout)[:, tokens.prefix :].unflatten(1, tokens.grid)
