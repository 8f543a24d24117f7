"""What every plan of masks promises, on any rectangle; and what lightly's helpers do, done by plans."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import pytest
import torch
from torch import Tensor

from patchcast.backbones import Grid
from patchcast.geometry import take
from patchcast.plans import (
    BlockMask,
    GridMask,
    InverseBlockMask,
    MaskPlan,
    MultiBlock,
    Planner,
    RandomMask,
    RasterOrder,
)
from patchcast.plans.earlier import as_before

BATCH = 64
COVERING = {  # every unit is either seen or predicted
    "random": RandomMask(0.75),
    "grid": GridMask(0.6, cell=2),
    "block": BlockMask(0.4),
    "inverse block": InverseBlockMask(0.65),
}
PLANS: dict[str, Planner] = {**COVERING, "multi-block": MultiBlock()}
GRIDS = [Grid(14, 14), Grid(16, 16), Grid(3, 3), Grid(4, 16), Grid(1, 9), Grid(9, 1), Grid(5, 7)]

every_plan = pytest.mark.parametrize("name", PLANS)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def draw(name: str, grid: Grid, seed: int = 0, batch: int = BATCH) -> MaskPlan:
    return PLANS[name](grid, batch, torch.Generator().manual_seed(seed))


@every_grid
@every_plan
def test_what_is_predicted_is_hidden_and_no_unit_comes_twice(name: str, grid: Grid) -> None:
    for seed in range(5):
        plan = draw(name, grid, seed)
        assert plan.visible.shape[1] > 0
        assert plan.predict.shape[2] > 0
        hidden = plan.is_hidden.flatten(1)
        assert hidden.gather(1, plan.predict.flatten(1)).all()
        assert (plan.visible.diff(dim=1) > 0).all()  # sorted, each once
        assert (plan.predict.diff(dim=2) > 0).all()
        assert plan.visible.shape[1] == (~hidden).sum(dim=1).unique().item()


@every_grid
@pytest.mark.parametrize("name", COVERING)
def test_masks_cover_the_grid(name: str, grid: Grid) -> None:
    plan = draw(name, grid)
    every = torch.cat([plan.visible, plan.predict[:, 0]], dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(grid.units).expand(BATCH, -1))
    if name != "grid":
        assert plan.predict.shape[2] == COVERING[name].count(grid.units, COVERING[name].ratio)


@every_plan
def test_a_seed_is_a_plan(name: str) -> None:
    torch.manual_seed(1)
    first = draw(name, Grid(8, 8), seed=3)
    torch.manual_seed(2)
    again, other = draw(name, Grid(8, 8), seed=3), draw(name, Grid(8, 8), seed=4)
    assert torch.equal(first.visible, again.visible)
    assert torch.equal(first.predict, again.predict)
    assert first.predict.shape != other.predict.shape or not torch.equal(first.predict, other.predict)
    assert not (first.predict == first.predict[:1]).all()  # each image has its own


@every_plan
def test_every_unit_gets_its_turn(name: str) -> None:
    """Also the last row and column, which I-JEPA's own sampler never asks for."""
    grid = Grid(8, 12)
    asked = torch.zeros(grid.units)
    for seed in range(40):
        asked += torch.bincount(draw(name, grid, seed).predict.flatten(), minlength=grid.units)
    assert (asked > 0).all()


def rectangle(units: Tensor, grid: Grid) -> tuple[int, int]:
    """Rows and columns of the smallest rectangle around the units."""
    rows, cols = units // grid.cols, units % grid.cols
    return int(rows.max() - rows.min()) + 1, int(cols.max() - cols.min()) + 1


def test_grid_mask_hides_whole_cells() -> None:
    plan = GridMask(0.6, cell=2)(Grid(12, 8), BATCH)
    cells = plan.is_hidden.unflatten(2, (4, 2)).unflatten(1, (6, 2)).float().mean(dim=(2, 4))
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert (cells.sum(dim=(1, 2)) == 24 - int(24 * 0.4)).all()


def test_grid_mask_of_single_units_is_a_random_mask() -> None:
    assert GridMask(0.6, cell=1)(Grid(5, 7), 2).predict.shape == RandomMask(0.6)(Grid(5, 7), 2).predict.shape


def test_block_mask_hides_blocks() -> None:
    """Hidden units have hidden neighbors far more often than under a random mask of the same ratio."""

    def alike(plan: MaskPlan) -> float:
        hidden = plan.is_hidden
        return float((hidden[:, :, 1:] & hidden[:, :, :-1]).sum() / hidden[:, :, 1:].sum())

    blocks, random = alike(BlockMask(0.4)(Grid(14, 14), BATCH)), alike(RandomMask(0.4)(Grid(14, 14), BATCH))
    assert random == pytest.approx(0.4, abs=0.03)
    assert blocks > 0.75


@pytest.mark.parametrize("grid", [Grid(14, 14), Grid(4, 16)], ids=str)
def test_inverse_block_mask_shows_one_rectangle(grid: Grid) -> None:
    plan = InverseBlockMask(0.65)(grid, BATCH)
    for shown in ~plan.is_hidden:
        # Unroll: some shift of the torus makes the rectangle around the units hardly larger than their number.
        areas = []
        for down in range(grid.rows):
            for right in range(grid.cols):
                rows, cols = rectangle(shown.roll((down, right), (0, 1)).flatten().nonzero()[:, 0], grid)
                areas.append(rows * cols)
        assert min(areas) - plan.visible.shape[1] < max(grid)


def test_multi_block_has_the_papers_sizes() -> None:
    grid, sizes = Grid(16, 16), set()
    for seed in range(60):
        plan = draw("multi-block", grid, seed, batch=8)
        assert plan.predict.shape[:2] == (8, 4)
        size = {rectangle(block, grid) for image in plan.predict for block in image}
        assert len(size) == 1  # one size for the batch
        ((rows, cols),) = size
        assert rows * cols == plan.predict.shape[2]  # a full rectangle
        assert 0.13 < rows * cols / 256 < 0.22
        assert 0.6 < rows / cols < 1.8
        assert 10 <= plan.visible.shape[1] <= 256 - rows * cols
        sizes |= size
    assert len(sizes) > 6  # I-JEPA's own sampler, whose scale and aspect are one number, knows six


def test_multi_block_keeps_its_blocks_on_strips() -> None:
    """A target too high for the grid is wider instead, and the context has the grid's proportions."""
    plan = MultiBlock()(Grid(2, 32), BATCH)
    assert 0.1 < plan.predict.shape[2] / 64 < 0.25
    assert plan.visible.shape[1] >= 10


@pytest.mark.parametrize("grid", [Grid(1, 2), Grid(2, 2), Grid(2, 3), Grid(3, 3)], ids=str)
def test_multi_block_leaves_context_on_the_smallest_grids(grid: Grid) -> None:
    for seed in range(50):
        assert draw("multi-block", grid, seed).visible.shape[1] >= 1


@pytest.mark.parametrize(
    ("plan", "grid", "message"),
    [
        (RandomMask(0.75), Grid(1, 1), "hides 0 of the 1 units of a 1x1 grid"),
        (GridMask(0.9, cell=4), Grid(4, 4), "hides 0 of the 16 units"),
        (GridMask(0.9, cell=5), Grid(4, 4), "hides 0 of the 16 units"),
        (InverseBlockMask(0.1), Grid(3, 3), "hides 0 of the 9"),
        (MultiBlock(target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0)), Grid(4, 4), "4x4 units leaves no context"),
        (MultiBlock(), Grid(1, 1), "at least two units; the grid is 1x1"),
    ],
)
def test_grids_too_small_are_refused(plan: Planner, grid: Grid, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(grid, 2)


@pytest.mark.parametrize("kind", [RandomMask, GridMask, BlockMask, InverseBlockMask])
def test_ratios_lie_between_0_and_1(kind: type) -> None:
    with pytest.raises(ValueError, match=r"got 1\.0"):
        kind(1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockMask(0.4, aspect=(3.0, 1.0)), r"aspect goes from .* got 3\.0 to 1\.0"),
        (lambda: BlockMask(0.4, aspect=(0.0, 1.0)), r"above 0; got 0\.0 to 1\.0"),
        (lambda: BlockMask(0.4, aspect=(1.0, float("nan"))), "got 1.0 to nan"),
        (lambda: BlockMask(0.4, aspect=(1.0, float("inf"))), "got 1.0 to inf"),
        (lambda: BlockMask(0.4, min_units=0), "min_units must be a whole number, 1 or more; got 0"),
        (lambda: InverseBlockMask(0.4, aspect=(2.0, 0.5)), r"got 2\.0 to 0\.5"),
        (lambda: GridMask(0.4, cell=0), "units per side of a cell must be a whole number, 1 or more; got 0"),
        (lambda: MultiBlock(targets=0), "targets must be a whole number"),
        (lambda: MultiBlock(min_context=-1), "min_context must be a whole number"),
        (lambda: MultiBlock(target_scale=(0.2, 0.15)), "target_scale goes from"),
        (lambda: MultiBlock(target_scale=(0.2, 1.5)), r"at most 1; got 0\.2 to 1\.5"),
        (lambda: MultiBlock(target_aspect=(1.5, 0.75)), "target_aspect goes from"),
        (lambda: MultiBlock(context_scale=(-0.1, 1.0)), "context_scale goes from"),
        (lambda: RandomMask(float("nan")), "got nan"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(build: Callable[[], Planner], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


RATIOS = [percent / 100 for percent in range(1, 100)]


def test_as_many_are_visible_as_in_mae() -> None:
    """`int(N * (1 - ratio))`, floating point as it falls out; where that is none, one is."""
    for ratio in RATIOS:
        for cols in (2, 6, 9, 16, 49, 100, 196, 197, 256, 1024):
            visible = RandomMask(ratio)(Grid(1, cols), 1).visible.shape[1]
            assert visible == max(1, int(cols * (1 - ratio))), (ratio, cols)


def test_simmims_count_at_its_own_settings() -> None:
    """The paper's code hides `ceil(cells * ratio)`: 0.6 of 6x6 cells."""
    for ratio in (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.75):
        hidden = GridMask(ratio, cell=2)(Grid(12, 12), 1).predict.shape[2]
        assert hidden == ceil(36 * ratio) * 4, ratio


@pytest.mark.parametrize("grid", [Grid(16, 16), Grid(7, 9)], ids=str)
def test_multi_block_has_as_much_context_in_batches_of_any_size(grid: Grid) -> None:
    """All that is random in the number is the sizes, which are drawn first."""
    for seed in range(20):
        counts = {draw("multi-block", grid, seed, batch).visible.shape[1] for batch in (1, 16, 300)}
        assert len(counts) == 1, seed


def test_earlier_plans() -> None:
    """Runs that were started with the earlier rules end with them."""
    cases = [
        (RandomMask(0.75), 6, 4),
        (BlockMask(0.4), 196, 78),
        (InverseBlockMask(0.66), 9, 6),
        (RandomMask(0.5), 5, 2),
    ]
    for planner, units, hidden in cases:
        assert as_before(planner)(Grid(1, units), 1).predict.shape[2] == hidden
    assert as_before(GridMask(0.6, cell=2))(Grid(3, 3), 1).predict.shape[2] == 4
    counts = {as_before(MultiBlock())(Grid(16, 16), batch).visible.shape[1] for batch in (2, 500) for _ in range(5)}
    assert len(counts) > 2
    order = RasterOrder()
    assert as_before(order) is order


class TestLightlysHelpers:
    """What lightly's index helpers are for, and how it is said here. Theirs count the class token as 0."""

    @pytest.fixture(autouse=True)
    def _lightly(self) -> None:
        pytest.importorskip("lightly", reason="the peer here: pip install patchcast[peers]")
        from lightly.models import utils

        self.utils = utils

    def test_random_token_mask(self) -> None:
        for ratio in RATIOS:
            for units in (6, 16, 49, 196, 197):
                plan = RandomMask(ratio)(Grid(1, units), 2)
                keep, mask = self.utils.random_token_mask((2, 1 + units), mask_ratio=ratio)
                if keep.shape[1] > 1:  # theirs may keep the class token alone
                    assert keep.shape[1] - 1 == plan.visible.shape[1]
                    assert mask.shape[1] == plan.predict.shape[2]

    def test_random_grid_token_mask(self) -> None:
        for ratio in RATIOS:
            keep, mask = self.utils.random_grid_token_mask((2, 145), mask_ratio=ratio, grid_size=4)
            plan = GridMask(ratio, cell=4)(Grid(12, 12), 2)
            if keep.shape[1] > 1:
                assert (keep.shape[1] - 1, mask.shape[1]) == (plan.visible.shape[1], plan.predict.shape[2])

    def test_random_inverse_block_mask(self) -> None:
        for ratio in RATIOS:
            keep, mask = self.utils.random_inverse_block_mask((2, 197), mask_ratio=ratio)
            plan = InverseBlockMask(ratio)(Grid(14, 14), 2)
            assert (keep.shape[1] - 1, mask.shape[1]) == (plan.visible.shape[1], plan.predict.shape[2])

    def test_random_block_mask(self) -> None:
        """Theirs is boolean, True where hidden, of another count in every image: `is_hidden`, of one count here."""
        theirs = self.utils.random_block_mask((8, 14, 14), batch_mask_ratio=1.0)
        assert theirs.shape == BlockMask(0.4)(Grid(14, 14), 8).is_hidden.shape
        assert BlockMask(0.4)(Grid(14, 14), 8).is_hidden.sum(dim=(1, 2)).tolist() == [79] * 8

    def test_get_set_and_mask_at_index(self) -> None:
        plan, tokens = RandomMask(0.5)(Grid(4, 4), 2), torch.randn(2, 16, 5)
        assert torch.equal(take(tokens, plan.visible), self.utils.get_at_index(tokens, plan.visible))
        hidden = plan.is_hidden.flatten(1)
        token = torch.randn(1, 1, 5)
        masked = self.utils.mask_at_index(tokens, plan.predict[:, 0], token)
        assert torch.equal(torch.where(hidden[..., None], token, tokens), masked)
        assert torch.equal(self.utils.mask_bool(tokens, hidden, token), masked)
        back = self.utils.set_at_index(masked, plan.predict[:, 0], take(tokens, plan.predict[:, 0]))
        assert torch.equal(back, tokens)
