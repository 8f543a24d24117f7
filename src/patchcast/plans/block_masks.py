"""Plans that hide, show or predict rectangles of units.

They are drawn for the whole batch at once, and every image of a batch has the same number of units in each role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchcast.geometry import Grid
from patchcast.plans.plan import MaskPlan
from patchcast.plans.random_masks import (
    HiddenCount,
    check_count,
    check_hidden,
    check_range,
    check_ratio,
    hidden_rounded_down,
    hide_first,
    visible_rounded_down,
)


@dataclass(frozen=True)
class BlockMask:
    """Hide rectangles until `ratio` of the units are hidden (Bao et al. 2022, algorithm 1).

    A block has between `min_units` units and the number that is still to be hidden. Its aspect is drawn log-uniformly,
    its position uniformly from those where it fits. The last block is cut at one side, so that every image hides the
    same number of units; in the paper the number varies.

    >>> plan = BlockMask(0.4)(Grid(14, 14), 2, torch.Generator().manual_seed(0))
    >>> plan.predict.shape
    torch.Size([2, 1, 79])

    Args:
        ratio: share of units hidden, in (0, 1); the number of visible units is rounded down, as in `RandomMask`.
        min_units: minimum number of units of a block, before it is cut.
        aspect: smallest and largest rows / cols of a block.
        count: number of N units that are hidden at a ratio.
    Raises:
        ValueError: if `ratio` is not in (0, 1), `min_units` is below 1, `aspect` is not increasing, or the grid has a
            single unit.
    """

    ratio: float = 0.4
    min_units: int = 16
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    count: HiddenCount = field(default=visible_rounded_down, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_count("min_units", self.min_units)
        check_range("aspect", self.aspect)

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        hidden = int(self.count(grid.units, self.ratio))
        check_hidden(hidden, self.ratio, grid)
        # The order in which units are hidden: block by block, and within a block from one side to the other.
        turn = torch.full((batch, grid.units), torch.inf)
        block = 0
        while (left := hidden - turn.isfinite().sum(dim=1)).max() > 0:
            low = min(self.min_units, hidden)
            area = low + torch.rand(batch, generator=generator) * (left - low).clamp(min=0)
            aspect = _log_uniform(self.aspect, batch, generator)
            rows = (area * aspect).sqrt().round().clamp(1, grid.rows).long()
            cols = (area / rows).round().clamp(1, grid.cols).long()
            inside = _inside(grid, rows, cols, *_place(grid, rows, cols, generator))
            turn = torch.where(inside & turn.isinf(), block * grid.units + _sweep(grid, batch, generator), turn)
            block += 1
        return hide_first(grid, turn, hidden)


@dataclass(frozen=True)
class InverseBlockMask:
    """Show one rectangle of units and hide the rest (Darcet et al. 2025, CAPI).

    The rectangle may wrap around the border, so that units at the border are visible as often as others. Part of its
    last row or column is cut if its sides do not multiply to the number of units.

    >>> plan = InverseBlockMask(0.65)(Grid(14, 14), 2, torch.Generator().manual_seed(0))
    >>> plan.visible.shape
    torch.Size([2, 69])

    Args:
        ratio: share of units hidden, in (0, 1); their number is rounded down, as in CAPI.
        aspect: smallest and largest rows / cols of the visible rectangle, limited by the grid.
        count: number of N units that are hidden at a ratio.
    Raises:
        ValueError: if `ratio` is not in (0, 1), `aspect` is not increasing, or no unit would be hidden.
    """

    ratio: float = 0.65
    aspect: tuple[float, float] = (0.5, 2.0)
    count: HiddenCount = field(default=hidden_rounded_down, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_range("aspect", self.aspect)

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        hidden = int(self.count(grid.units, self.ratio))
        check_hidden(hidden, self.ratio, grid)
        seen = grid.units - hidden
        aspect = _log_uniform(self.aspect, batch, generator)
        rows = (seen * aspect).sqrt().round().clamp(-(-seen // grid.cols), grid.rows).long()
        cols = -(-seen // rows)
        corner = torch.zeros(batch, dtype=torch.long)
        # Units of a block at the corner come first, so that exactly the required number of them is visible ...
        shown = torch.where(_inside(grid, rows, cols, corner, corner), 0, 2 * grid.units) + _sweep(
            grid, batch, generator
        )
        # ... and then the whole mask is shifted around.
        down = torch.randint(grid.rows, (batch, 1, 1), generator=generator)
        right = torch.randint(grid.cols, (batch, 1, 1), generator=generator)
        source = ((_rows(grid) - down) % grid.rows * grid.cols + (_cols(grid) - right) % grid.cols).flatten(1)
        return hide_first(grid, -shown.gather(1, source), hidden)


BlockSize = tuple[int, int]
ContextCount = Callable[[Grid, BlockSize, BlockSize, int], int]
"""The number of context units of every image, from the grid, the rows and columns of context and target, and the
number of targets."""


def expected_context(grid: Grid, context: BlockSize, target: BlockSize, targets: int) -> int:
    """The expected number of context units that are in no target.

    >>> expected_context(Grid(16, 16), (16, 15), (8, 6), 4)
    104
    """
    share = target[0] * target[1] / grid.units
    return int(context[0] * context[1] * (1 - share) ** targets)


@dataclass(frozen=True)
class MultiBlock:
    """Predict several blocks from one large block of context without them (Assran et al. 2023, section 3).

    Sizes are drawn once per batch, positions for each image. All contexts of a batch must have the same number of
    units. `context_units` computes it from the sizes alone, so it does not depend on the batch size. A larger context
    loses random units; an image with a smaller one is drawn again. I-JEPA's published sampler cuts all contexts to the
    smallest of the batch instead: of 256 units, that leaves 76 on average in batches of 128 and 60 in batches of 2,048;
    this leaves 109.

    Other side effects of the published sampler are avoided: scale and aspect are drawn independently (there from one
    number, which leaves six target sizes on a 16x16 grid); blocks can reach the last row and column (there never); the
    context can be the whole grid (there never); contexts are cut at random (there from the bottom). On grids that are
    not square, the context has the grid's proportions, and a block that is too high is made wider instead.

    >>> plan = MultiBlock()(Grid(14, 14), 2, torch.Generator().manual_seed(0))
    >>> plan.predict.shape[:2], bool(plan.is_hidden.flatten(1).gather(1, plan.predict.flatten(1)).all())
    (torch.Size([2, 4]), True)

    Args:
        targets: number of blocks to predict, which may overlap.
        target_scale: smallest and largest share of the units in a target.
        target_aspect: smallest and largest rows / cols of a target.
        context_scale: smallest and largest share of the units in the context, before targets are removed.
        min_context: minimum number of context units, or a quarter of the grid if that is less.
        context_units: computes the number of context units; None cuts all contexts to the smallest of the batch.
    Raises:
        ValueError: if a number is not positive, a range is not increasing or a scale is above 1, the grid has a single
            unit, or a target covers all of it.
    """

    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context: int = 10
    context_units: ContextCount | None = field(default=expected_context, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_count("targets", self.targets)
        check_count("min_context", self.min_context)
        check_range("target_scale", self.target_scale, most=1.0)
        check_range("target_aspect", self.target_aspect)
        check_range("context_scale", self.context_scale, most=1.0)

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        if grid.units < 2:
            raise ValueError(f"a context and a target need at least two units; the grid is {grid}")
        target = self._size(grid, self.target_scale, _log_uniform(self.target_aspect, 1, generator).item(), generator)
        context = self._size(grid, self.context_scale, grid.rows / grid.cols, generator)
        beside = grid.units - target[0] * target[1]
        if beside == 0:
            raise ValueError(f"a target of {target[0]}x{target[1]} units leaves no context on a grid of {grid}")
        enough = min(self.min_context, grid.units // 4)
        if self.context_units is not None:
            enough = min(max(enough, self.context_units(grid, context, target, self.targets), 1), beside)
        asked, seen = self._draw(grid, batch, target, context, generator)
        for _ in range(20):
            short = seen.sum(dim=1) < enough
            if not short.any():
                break
            drawn = torch.ones_like(short) if self.context_units is None else short
            again = self._draw(grid, int(drawn.sum()), target, context, generator)
            asked[short], seen[short] = (tensor[short[drawn]] for tensor in again)
        # On very small grids the targets may still cover everything: then all get the same position.
        fits = seen.sum(dim=1) >= (1 if self.context_units is None else enough)
        asked = torch.where(fits[:, None, None], asked, asked[:, :1])
        seen = torch.where(fits[:, None], seen, ~asked[:, 0])
        count = int(seen.sum(dim=1).min()) if self.context_units is None else enough
        chance = torch.rand(batch, grid.units, generator=generator).masked_fill(~seen, 2.0)
        visible = chance.argsort(dim=1)[:, :count].sort(dim=1).values
        return MaskPlan(grid, visible, asked.nonzero()[:, 2].view(batch, self.targets, -1))

    def _size(
        self, grid: Grid, scale: tuple[float, float], aspect: float, generator: torch.Generator | None
    ) -> BlockSize:
        """Rows and columns of a block, drawn for the batch."""
        low, high = scale
        area = grid.units * (low + (high - low) * torch.rand(1, generator=generator).item())
        rows = min(grid.rows, max(1, round((area * aspect) ** 0.5)))
        return rows, min(grid.cols, max(1, round(area / rows)))

    def _draw(
        self, grid: Grid, batch: int, target: BlockSize, context: BlockSize, generator: torch.Generator | None
    ) -> tuple[Bool[Tensor, "B G N"], Bool[Tensor, "B N"]]:
        """The units of each target, and those of the context."""
        asked = _anywhere(grid, batch * self.targets, target, generator).unflatten(0, (batch, self.targets))
        return asked, _anywhere(grid, batch, context, generator) & ~asked.any(dim=1)


def _log_uniform(between: tuple[float, float], batch: int, generator: torch.Generator | None) -> Float[Tensor, " B"]:
    low, high = log(between[0]), log(between[1])
    return (low + (high - low) * torch.rand(batch, generator=generator)).exp()


def _anywhere(grid: Grid, batch: int, size: tuple[int, int], generator: torch.Generator | None) -> Bool[Tensor, "B N"]:
    """Blocks of one size at independent positions."""
    rows, cols = torch.full((batch,), size[0]), torch.full((batch,), size[1])
    return _inside(grid, rows, cols, *_place(grid, rows, cols, generator))


def _place(
    grid: Grid, rows: Int[Tensor, " B"], cols: Int[Tensor, " B"], generator: torch.Generator | None
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The upper left corner, uniform over the positions where the block fits."""
    down, right = torch.rand(2, len(rows), generator=generator)
    return (down * (grid.rows - rows + 1)).long(), (right * (grid.cols - cols + 1)).long()


def _inside(
    grid: Grid, rows: Int[Tensor, " B"], cols: Int[Tensor, " B"], top: Int[Tensor, " B"], left: Int[Tensor, " B"]
) -> Bool[Tensor, "B N"]:
    """True where a unit is in the block."""
    down, right = _rows(grid) - top[:, None, None], _cols(grid) - left[:, None, None]
    high, wide = rows[:, None, None], cols[:, None, None]
    return ((down >= 0) & (down < high) & (right >= 0) & (right < wide)).flatten(1)


def _sweep(grid: Grid, batch: int, generator: torch.Generator | None) -> Int[Tensor, "B N"]:
    """A rank for each unit: by rows or by columns, from either end, at random for each image."""
    by_row = _rows(grid) * grid.cols + _cols(grid)
    by_col = _cols(grid) * grid.rows + _rows(grid)
    last = grid.units - 1
    ways = torch.stack([by_row, last - by_row, by_col, last - by_col]).flatten(1)
    return ways[torch.randint(4, (batch,), generator=generator)]


def _rows(grid: Grid) -> Int[Tensor, "rows 1"]:
    return torch.arange(grid.rows)[:, None]


def _cols(grid: Grid) -> Int[Tensor, "1 cols"]:
    return torch.arange(grid.cols)[None]
