"""Plans that predict units one after the other, and the curves that they follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchcast.geometry import Grid
from patchcast.plans.plan import OrderPlan, StartPlan

# ---- curves: a grid to the order in which its units are visited ------------------------------------------------------


def raster(grid: Grid) -> Int[Tensor, " N"]:
    """Row by row.

    >>> raster(Grid(2, 3)).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return torch.arange(grid.units)


def snake(grid: Grid) -> Int[Tensor, " N"]:
    """Row by row, every second row backwards, so that consecutive units touch.

    >>> snake(Grid(2, 3)).tolist()
    [0, 1, 2, 5, 4, 3]
    """
    rows = raster(grid).view(grid)
    rows[1::2] = rows[1::2].flip(1)
    return rows.flatten()


def hilbert(grid: Grid) -> Int[Tensor, " N"]:
    """Along Hilbert's curve, which keeps neighboring units close in the order (Hilbert 1891).

    The curve fills the smallest square whose side is a power of two; units outside of the grid are skipped.

    >>> hilbert(Grid(2, 2)).tolist()
    [0, 1, 3, 2]
    """
    side = 1 << (max(grid) - 1).bit_length() if max(grid) > 1 else 1
    place = torch.arange(side * side)
    row, col, rest, level = torch.zeros_like(place), torch.zeros_like(place), place, 1
    while level < side:
        down = (rest // 2) & 1
        right = (rest ^ down) & 1
        # Each quarter is the whole curve again; the first and the last are mirrored on the diagonals.
        turned = right == 0
        mirrored = turned & (down == 1)
        row, col = torch.where(mirrored, level - 1 - row, row), torch.where(mirrored, level - 1 - col, col)
        row, col = torch.where(turned, col, row), torch.where(turned, row, col)
        row, col, rest, level = row + level * down, col + level * right, rest // 4, level * 2
    inside = (row < grid.rows) & (col < grid.cols)
    return (row * grid.cols + col)[inside]


def coarse_to_fine(grid: Grid) -> Int[Tensor, " N"]:
    """Every eighth row and column first, then every fourth, every second, and the rest.

    >>> coarse_to_fine(Grid(2, 4)).tolist()
    [0, 2, 1, 3, 4, 5, 6, 7]
    """
    rows, cols = torch.arange(grid.rows)[:, None], torch.arange(grid.cols)[None, :]
    level = torch.stack([(rows % step == 0) & (cols % step == 0) for step in (2, 4, 8)]).sum(dim=0)
    return level.flatten().argsort(descending=True, stable=True)


# ---- planners --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RasterOrder:
    """Row by row, after a random visible prefix per image that is not predicted (El-Nouby et al. 2024, section 3.3).

    >>> plan = RasterOrder()(Grid(4, 4), 2, torch.Generator().manual_seed(0))
    >>> plan.order[0, :5].tolist(), bool((plan.prefix >= 1).all() and (plan.prefix <= 15).all())
    ([0, 1, 2, 3, 4], True)

    Args:
        random_prefix: draw each prefix length uniformly from 1..N-1; if False, there is none and the mask is causal.
    Raises:
        ValueError: if the grid has a single unit.
    """

    random_prefix: bool = True

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
        plan = FixedOrder(raster, self.random_prefix)(grid, batch, generator)
        return OrderPlan(grid, plan.order, plan.prefix, is_raster=not self.random_prefix)


@dataclass(frozen=True)
class FixedOrder:
    """The order of a curve, the same in every image.

    >>> FixedOrder(snake)(Grid(2, 3), 1).order.tolist()
    [[0, 1, 2, 5, 4, 3]]

    Args:
        curve: returns the order of a grid: `snake`, `hilbert`, `coarse_to_fine`, or your own.
        random_prefix: as in `RasterOrder`.
    """

    curve: Callable[[Grid], Int[Tensor, " N"]]
    random_prefix: bool = True

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
        return OrderPlan(
            grid, self.curve(grid).expand(batch, -1), draw_prefix(grid, batch, self.random_prefix, generator)
        )


@dataclass(frozen=True)
class RandomOrder:
    """A different random order for every image (Hua et al. 2022). The head needs the position of the next unit.

    >>> plan = RandomOrder()(Grid(2, 2), 2, torch.Generator().manual_seed(0))
    >>> plan.order.sort().values.tolist()
    [[0, 1, 2, 3], [0, 1, 2, 3]]
    """

    random_prefix: bool = True

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
        order = torch.rand(batch, grid.units, generator=generator).argsort(dim=1)
        return OrderPlan(grid, order, draw_prefix(grid, batch, self.random_prefix, generator))


def draw_prefix(grid: Grid, batch: int, random: bool, generator: torch.Generator | None) -> Int[Tensor, " B"]:
    """Prefix lengths: uniform over 1..N-1, or 0."""
    if grid.units < 2:
        raise ValueError(f"predicting the next unit needs at least two; the grid is {grid}")
    if not random:
        return torch.zeros(batch, dtype=torch.long)
    return torch.randint(1, grid.units, (batch,), generator=generator)


@dataclass(frozen=True)
class FromStart:
    """Row by row after a start token, so that all N units are predicted (Chen et al. 2020, section 2.1).

    >>> FromStart()(Grid(2, 2), 1).predict.tolist()
    [[[0, 1, 2, 3]]]
    """

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> StartPlan:
        return StartPlan(grid, raster(grid).expand(batch, -1))
