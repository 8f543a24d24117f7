"""Heads over the features of all units: convolutions, and NEPA's with pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from patchcast import cosine, wrap
from patchcast.geometry import Grid
from patchcast.methods import aim, beit, maskfeat, nepa, simmim
from patchcast.plans import MaskPlan, RandomMask
from patchcast.predictors import LinearHead, MLPHead, NeighborHead
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.views import Context


def conv_head(**options: int) -> NeighborHead:
    torch.manual_seed(0)
    return NeighborHead(32, **{"depth": 1, **options}, embed=nn.Linear(8, 32), head=nn.Linear(32, 5))


@pytest.mark.parametrize(("depth", "kernel", "reach"), [(1, 3, 1), (2, 3, 2), (1, 5, 2)])
def test_a_prediction_reads_features_as_far_as_the_kernels_reach(depth: int, kernel: int, reach: int) -> None:
    grid = Grid(1, 9)
    plan = MaskPlan(grid, torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8]]), torch.tensor([[[4]]]))
    units = torch.randn(1, 9, 8, requires_grad=True)
    conv_head(depth=depth, kernel=kernel)(Context(grid, torch.zeros(1, 1, 8), units), plan).sum().backward()
    assert units.grad is not None
    touched = units.grad[0].abs().sum(dim=-1).nonzero().flatten().tolist()
    assert touched == list(range(4 - reach, 5 + reach)), "its own unit too"


def test_rows_are_in_the_order_of_the_plan() -> None:
    grid, units = Grid(2, 3), torch.randn(1, 6, 8)
    head, context = conv_head(), Context(Grid(2, 3), torch.zeros(1, 0, 8), units)
    some, others = (MaskPlan(grid, torch.tensor([[0]]), torch.tensor([[order]])) for order in ([1, 4, 5], [5, 1, 4]))
    assert torch.equal(head(context, some)[0, 0], head(context, others)[0, 0, [1, 2, 0]])


def test_padding_is_not_read() -> None:
    grid, units = Grid(4, 4), torch.randn(2, 16, 8)
    plan = RandomMask(0.5)(grid, 2)
    is_valid = torch.ones(2, 17, dtype=torch.bool)
    is_valid[1, -4:] = False  # the prefix token comes first
    changed = units.clone()
    changed[1, -4:] = torch.randn(4, 8)
    prefix = torch.zeros(2, 1, 8)
    before, after = (
        conv_head(depth=2)(Context(grid, prefix, each, is_valid=is_valid), plan) for each in (units, changed)
    )
    assert torch.equal(before, after)
    assert not torch.equal(before, conv_head(depth=2)(Context(grid, prefix, changed), plan))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 5}, "divisible by their groups; got 32 and 5"),
        ({"kernel": 2}, "odd number of units; got 2"),
        ({"depth": 0}, "at least one layer; got a depth of 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conv_head(**options)


def test_methods_keep_the_papers_linear_head_unless_asked() -> None:
    backbone = wrap("test_vit", img_size=48)
    codes = PatchCodebook(torch.randn(8, 768), backbone.stride)
    for built in (simmim(backbone), maskfeat(backbone), beit(backbone, codes)):
        assert type(built.predictor) is LinearHead
    for built in (
        simmim(backbone, head_kernel=3, head_depth=2),
        maskfeat(backbone, head_kernel=3, head_depth=2),
        beit(backbone, codes, head_kernel=3, head_depth=2),
    ):
        assert isinstance(built.predictor, NeighborHead)
        assert len(built.predictor.block_modules()) == 2
        assert built.predictor.head.out_features == built.target.outputs


def test_nepa_with_pixels_is_nepa_plus_a_weighted_loss() -> None:
    images, weights = torch.randn(2, 3, 160, 160), (0.0, 0.5, 1.0)
    backbone = wrap("test_vit").eval()
    plan = nepa(backbone).draw(images)
    torch.manual_seed(0)
    head = nepa(backbone, pixel_weight=1.0).predictor
    losses = []
    for weight in weights:
        built = nepa(backbone, pixel_weight=weight)
        if weight:
            built.predictor = head
        losses.append(float(built(images, plan).loss.detach()))
    assert nepa(backbone).loss is cosine
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    with pytest.raises(ValueError, match="pixel_weight is a number of 0 or more; got -1"):
        nepa(backbone, pixel_weight=-1.0)


def test_nepa_with_a_head_predicts_embeddings_and_pixels() -> None:
    built = nepa(wrap("test_vit"), head_depth=2, pixel_weight=0.5)
    assert isinstance(built.predictor, MLPHead)
    assert len(built.predictor.block_modules()) == 2
    assert built(torch.randn(2, 3, 160, 160)).predictions.shape == (2, 1, 99, 64 + 3 * 16 * 16)


@pytest.mark.parametrize("given", [{"head_depth": 2}, {"head_width": 32}])
def test_sizes_of_a_head_that_there_is_not_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"head_(depth 2|width 32) is of a head of convolutions: give a head_kernel too"
    ):
        simmim(wrap("test_vit"), **given)


@pytest.mark.parametrize("build", [nepa, aim])
def test_a_negative_depth_is_refused(build: Callable[..., Pretrainer]) -> None:
    with pytest.raises(ValueError, match="at least one block; got a depth of -2"):
        build(wrap("test_vit"), head_depth=-2)
