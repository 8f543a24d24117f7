"""The tests of honesty condemn what is not honest."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from patchcast.backbones import Grid, wrap
from patchcast.drawing.figures import draw_dependencies
from patchcast.honesty import _ways, dependencies, examine, no_leak
from patchcast.methods import aim
from patchcast.plans import OrderPlan, RandomOrder
from patchcast.plans.orders import FixedOrder, coarse_to_fine, hilbert, snake
from patchcast.pretrainer import Pretrainer
from tests import contracts
from tests.test_contracts import InvertedMask, Unshifted


def small_aim() -> Pretrainer:
    torch.manual_seed(0)
    return contracts.perturbed(aim(wrap("test_vit", img_size=16, patch_size=4, in_chans=1, depth=2), head_depth=1))


@pytest.mark.parametrize("bug", [InvertedMask, Unshifted])
def test_the_matrix_shows_a_leak_in_red(bug) -> None:
    pretrainer = small_aim()
    images = contracts.images_for(pretrainer)
    plan = pretrainer.draw(images)
    honest, allowed = dependencies(pretrainer, images, plan)
    assert not ((honest > 0) & ~allowed).any()
    found, allowed = dependencies(pretrainer, images, bug(plan.grid, plan.order, plan.prefix))
    assert ((found > 0) & ~allowed).any()
    assert "red: leaks" in draw_dependencies(found, allowed, title="aim").axes[0].get_title()
    assert not no_leak(pretrainer, images, bug(plan.grid, plan.order, plan.prefix), limit=4).honest


@pytest.mark.parametrize(
    ("bug", "ways"),
    [
        (Unshifted, 3),
        # Compiling under the shape checks of the tests takes ten times as long as the other ways together.
        pytest.param(Unshifted, 4, marks=pytest.mark.slow),
        pytest.param(InvertedMask, 4, marks=pytest.mark.slow),
    ],
)
def test_the_verdict_condemns_a_leak_in_every_way_of_running(bug, ways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchcast.honesty._ways", lambda pretrainer: islice(_ways(pretrainer), ways))
    pretrainer = small_aim()
    honest = pretrainer.plan

    def dishonest(grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
        plan = honest(grid, batch, generator)
        return bug(plan.grid, plan.order, plan.prefix)

    pretrainer.plan = dishonest
    verdict = examine(pretrainer, limit=2, seconds=0.5)
    assert not verdict.honest
    assert len(verdict.leaks) == ways
    assert all(leak.worst > 0 for leak in verdict.leaks.values()), verdict
    assert "Not honest: the method sees its answers." in str(verdict)


@pytest.mark.parametrize("order", [FixedOrder(snake), FixedOrder(hilbert), FixedOrder(coarse_to_fine), RandomOrder()])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_every_order_is_honest(order, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pretrainer = aim(wrap("test_vit", img_size=size, patch_size=4, in_chans=1, depth=2), head_depth=1)
    pretrainer.plan = order
    contracts.check_no_leak(pretrainer)
    plan = order(pretrainer.backbone.grid(size), 3, torch.Generator().manual_seed(0))
    assert torch.equal(plan.order.sort().values, torch.arange(plan.grid.units).expand(3, -1))


def test_curves_keep_near_what_is_near() -> None:
    for curve, grid in ((snake, (5, 7)), (hilbert, (8, 8))):
        pretrainer = wrap("test_vit", img_size=(grid[0] * 4, grid[1] * 4), patch_size=4)
        order = curve(pretrainer.grid(pretrainer.image_size))
        rows, cols = order // grid[1], order % grid[1]
        assert ((rows.diff().abs() + cols.diff().abs()) == 1).all()
