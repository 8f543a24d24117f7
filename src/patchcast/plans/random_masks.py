"""Plans that hide random units or cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import torch
from jaxtyping import Num
from torch import Tensor

from patchcast.geometry import Grid
from patchcast.plans.plan import MaskPlan, Planner

HiddenCount = Callable[[int | float, float], int | float]
"""The number of N that are hidden at a ratio."""


def visible_rounded_down(count: int | float, ratio: float) -> int | float:
    """The number hidden in MAE, SimMIM and lightly: the visible number is rounded down, with a minimum of 1.

    >>> visible_rounded_down(6, 0.75), visible_rounded_down(196, 0.75), visible_rounded_down(3, 0.75)
    (5, 147, 2)
    """
    return count - max(1, int(count * (1 - ratio)))


def hidden_rounded_down(count: int | float, ratio: float) -> int | float:
    """The number hidden in CAPI: rounded down.

    >>> hidden_rounded_down(196, 0.65)
    127
    """
    return int(count * ratio)


@dataclass(frozen=True)
class RandomMask:
    """Hide a random `ratio` of the units of each image (He et al. 2022, section 3).

    >>> plan = RandomMask(0.75)(Grid(14, 14), 2, torch.Generator().manual_seed(0))
    >>> plan.visible.shape, plan.predict.shape
    (torch.Size([2, 49]), torch.Size([2, 1, 147]))

    Args:
        ratio: share of units hidden, in (0, 1). The number of visible units is `int(N * (1 - ratio))`, as in MAE, with
            a minimum of 1.
        count: number of N that are hidden at a ratio.
    Raises:
        ValueError: if `ratio` is not in (0, 1), or if the grid has a single unit.
    """

    ratio: float
    count: HiddenCount = field(default=visible_rounded_down, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        hidden = int(self.count(grid.units, self.ratio))
        check_hidden(hidden, self.ratio, grid)
        return hide_first(grid, torch.rand(batch, grid.units, generator=generator), hidden)


@dataclass(frozen=True)
class GridMask:
    """Hide a random `ratio` of square cells of `cell` x `cell` units (Xie et al. 2022, section 3.2).

    If the grid is not a multiple of the cell, cells at its right and lower edges are smaller, and one cell of each
    image may be partly hidden, so that every image hides the same number of units.

    >>> plan = GridMask(0.6, cell=2)(Grid(12, 12), 2, torch.Generator().manual_seed(0))
    >>> plan.predict.shape  # 22 of 36 cells
    torch.Size([2, 1, 88])

    Args:
        ratio: share of cells hidden, in (0, 1). The number of visible cells is rounded down, with a minimum of 1.
        cell: units per side of a cell.
        count: number of N cells that are hidden at a ratio; N need not be a whole number.
    Raises:
        ValueError: if `ratio` is not in (0, 1) or `cell` not positive, or if a cell is as large as the grid.
    """

    ratio: float
    cell: int = 2
    count: HiddenCount = field(default=visible_rounded_down, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_count("units per side of a cell", self.cell)

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        hidden = max(0, round(self.count(grid.units / self.cell**2, self.ratio) * self.cell**2))
        check_hidden(hidden, self.ratio, grid)
        rows, cols = torch.arange(grid.rows) // self.cell, torch.arange(grid.cols) // self.cell
        cell_of = (rows[:, None] * (int(cols[-1]) + 1) + cols).flatten()
        cells = int(cell_of[-1]) + 1
        turn = torch.rand(batch, cells, generator=generator).argsort(dim=1).argsort(dim=1)
        # Whole cells in random order, and random units within a cell.
        return hide_first(grid, turn[:, cell_of] + torch.rand(batch, grid.units, generator=generator), hidden)


@dataclass(frozen=True)
class SeenToo:
    """Plans of another planner, in which the units that are seen are predicted as well, and count less in the loss.

    Such a prediction may use its own unit: it is easier than that of a hidden one, and says nothing of honesty, so that
    the tests of honesty hold the hidden ones to their standard alone.

    >>> plan = SeenToo(RandomMask(0.75), weight=0.1)(Grid(2, 2), 1, torch.Generator().manual_seed(0))
    >>> plan.predict.shape, [round(weight, 2) for weight in plan.weight[0, 0].tolist()]
    (torch.Size([1, 1, 4]), [1.0, 1.0, 1.0, 0.1])

    Args:
        planner: draws a `MaskPlan`: `RandomMask(0.75)`.
        weight: of a seen unit in the loss, above 0; that of a hidden one is 1.
    Raises:
        ValueError: if the weight is not a number above 0, or, when drawing, the plan is of another kind.
    """

    planner: Planner
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < inf:
            raise ValueError(f"the weight of units that are seen is a number above 0; got {self.weight}")

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        plan = self.planner(grid, batch, generator)
        if not isinstance(plan, MaskPlan):
            raise ValueError(f"units that are seen are predicted under masks; {self.planner} draws no MaskPlan")
        return replace(plan, seen_weight=self.weight)


def check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"the mask ratio must lie between 0 and 1, both excluded; got {ratio}")


def check_count(what: str, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{what} must be a whole number, 1 or more; got {count}")


def check_range(what: str, bounds: tuple[float, float], most: float = inf) -> None:
    """Check a range: positive and increasing."""
    low, high = bounds
    if not 0 < low <= high <= most or high == inf:
        limit = "" if most == inf else f" and at most {most:g}"
        raise ValueError(f"{what} goes from its least to its largest value, above 0{limit}; got {low} to {high}")


def check_hidden(hidden: int, ratio: float, grid: Grid) -> None:
    if not 0 < hidden < grid.units:
        raise ValueError(f"a mask ratio of {ratio} hides {hidden} of the {grid.units} units of a {grid} grid")


def hide_first(grid: Grid, turn: Num[Tensor, "B N"], hidden: int) -> MaskPlan:
    """Hide and predict the `hidden` units that come first in each image."""
    order = turn.argsort(dim=1)
    # Sorted: memory is read in order, and plans are easier to read. Methods do not depend on it.
    return MaskPlan(grid, order[:, hidden:].sort(dim=1).values, order[:, None, :hidden].sort(dim=2).values)
