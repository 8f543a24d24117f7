"""Every method on every backbone of the list, held to every contract."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from patchcast.backbones import Grid, wrap
from patchcast.plans import OrderPlan, RasterOrder
from patchcast.plans.earlier import as_before
from patchcast.pretrainer import Pretrainer
from tests import contracts, methods
from tests.backbones import zoo

BACKBONES: dict[str, Callable] = {
    "plain": lambda: wrap("test_vit", img_size=48),
    "non-square": lambda: wrap("test_vit", img_size=(32, 64), depth=2),
    "13 channels": lambda: wrap("test_vit", img_size=32, patch_size=8, in_chans=13, depth=2),
    "gray": lambda: wrap("test_vit", img_size=32, patch_size=8, in_chans=1, depth=2),
    "registers": lambda: zoo.sequence("registers", img_size=42),
    "pre-norm": lambda: zoo.sequence("pre-norm", img_size=96),
    "no class token": lambda: zoo.sequence("no class token", img_size=48),
}

GOLDEN = {
    "mae": 1.1052496,
    "mae, visible too": 1.1066984,
    "mae, convolutions": 1.0918138,
    "simmim": 0.9644015,
    "beit": 0.7378784,
    "distill": 0.6324776,
    "distill by replacement": 0.6514522,
    "ijepa": 0.4338609,
    "maskfeat": 0.5983039,
    "nepa": 0.9719796,
    "data2vec": 1.9926826,
    "data2vec by replacement": 2.3286917,
    "data2vec, pixels too": 1.8252001,
    "ijepa, pixels too": 0.9787481,
    "simmim, painted": 0.9585516,
    "mae, painted": 1.1049687,
    "mae of a teacher": 0.5064643,
    "mae and a teacher": 1.6861333,
    "mae with a teacher": 1.3434044,
    "simmim of codes": 0.6850986,
    "simmim, convolutions": 0.9756448,
    "simmim, normalized": 0.9671376,
    "maskfeat, pixels too": 1.3044350,
    "nepa, head and pixels": 1.5439577,
    "beit, convolutions": 1.1053935,
    "maskfeat, convolutions": 2.1362686,
    "nepa, pixels too": 1.6674333,
    "aim_features, pixels too": 0.9977788,
    "ijepa by replacement": 0.4288174,
    "aim": 1.1076592,
    "aim, linear head": 1.3919492,
    "aim, causal": 1.1034268,
    "aim, random order": 1.0950514,
    "aim_codes": 1.0056616,
    "aim_features": 0.6623324,
}
# Until December 2026 GridMask rounded the hidden cells to the nearest number: 2.4 to 2, where SimMIM hides 3.
GOLDEN_BEFORE = {"simmim": 0.9608703, "simmim, painted": 0.9560961, "simmim of codes": 0.6687568}

# Every method and every backbone is held to every contract, and every kind of method on every backbone; what else there
# is of pairs is slow.
PAIRS = [
    pytest.param(method, backbone, marks=[pytest.mark.slow] * (backbone != "gray" and method not in methods.KINDS))
    for method in methods.METHODS
    for backbone in BACKBONES
]
every_method = pytest.mark.parametrize("method", methods.METHODS)
every_pair = pytest.mark.parametrize(("method", "backbone"), PAIRS)


@cache
def built(method: str, backbone: str) -> Pretrainer:
    torch.manual_seed(0)
    return methods.build(method, BACKBONES[backbone]())


def build(method: str, backbone: str) -> Pretrainer:
    return copy.deepcopy(built(method, backbone))


def test_no_method_is_missing() -> None:
    assert {*methods.SMALL} == {*methods.ON_ANY_BACKBONE, "aim_codes"}
    assert {*GOLDEN} == {*methods.METHODS}


@every_pair
def test_no_leak(method: str, backbone: str) -> None:
    contracts.check_no_leak(build(method, backbone))


@pytest.mark.parametrize("method", methods.slow_but(["mae", "simmim", "aim", "beit", "aim_codes"]))
def test_noise_floor(method: str) -> None:
    if not build(method, "gray").target.has_noise_floor:
        pytest.skip("a teacher's features of noise can be predicted: by letting them collapse, or where they overlap")
    contracts.check_noise_floor(build(method, "gray"))


@every_pair
def test_gradients(method: str, backbone: str) -> None:
    contracts.check_gradients(build(method, backbone))


@every_pair
def test_save_and_load(method: str, backbone: str) -> None:
    contracts.check_save_and_load(build(method, backbone), build(method, backbone))


@every_pair
def test_modes(method: str, backbone: str) -> None:
    contracts.check_modes(build(method, backbone))


@every_pair
def test_gradient_checkpointing(method: str, backbone: str) -> None:
    contracts.check_gradient_checkpointing(build(method, backbone))


@every_method
def test_golden_loss(method: str) -> None:
    assert contracts.golden(build(method, "plain")) == pytest.approx(GOLDEN[method], rel=1e-5)


@pytest.mark.parametrize("method", GOLDEN_BEFORE)
def test_golden_loss_under_earlier_plans(method: str) -> None:
    pretrainer = build(method, "plain")
    pretrainer.plan = as_before(pretrainer.plan)
    assert contracts.golden(pretrainer) == pytest.approx(GOLDEN_BEFORE[method], rel=1e-5)


class InvertedMask(OrderPlan):
    """A planted bug: True taken to mean "hidden", as one library does."""

    def can_see(self, prefix_tokens: int) -> Tensor:
        return ~super().can_see(prefix_tokens) | torch.eye(prefix_tokens + self.grid.units, dtype=torch.bool)


class Unshifted(OrderPlan):
    """A planted bug: the output at a unit is scored against that same unit, as another library does."""

    @property
    def predict(self) -> Tensor:
        return self.source


@pytest.mark.parametrize("bug", [InvertedMask, Unshifted])
def test_planted_bugs_are_condemned(bug: type[OrderPlan]) -> None:
    def planted() -> Pretrainer:
        pretrainer = build("aim", "gray")
        honest = pretrainer.plan

        def draw(grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
            plan = honest(grid, batch, generator)
            return bug(plan.grid, plan.order, plan.prefix)

        pretrainer.plan = draw
        return pretrainer

    with pytest.raises(AssertionError, match="copies its answer"):
        contracts.check_noise_floor(planted())
    with pytest.raises(AssertionError, match="may not use"):
        contracts.check_no_leak(planted())


@pytest.mark.parametrize("random_prefix", [True, False])
def test_the_plans_mask_is_what_it_may_use(random_prefix: bool) -> None:
    """`can_see` and `may_use` are written from two definitions, and agree."""
    plan = RasterOrder(random_prefix)(Grid(3, 4), 5, torch.Generator().manual_seed(0))
    seen = plan.can_see(prefix_tokens=2)[:, 0, 2:, 2:]
    assert torch.equal(seen[:, :-1], plan.may_use()[:, 0])
