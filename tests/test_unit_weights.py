"""Weights of units in the loss: no data, and units that are seen."""

from __future__ import annotations

import pytest
import torch

from patchcast.backbones import Grid, wrap
from patchcast.drawing.reconstruction import reconstruct
from patchcast.geometry import valid_share
from patchcast.honesty import dependencies, no_leak
from patchcast.methods import aim, mae, simmim
from patchcast.plans import MultiBlock, RandomMask, RasterOrder, SeenToo, draw_each
from patchcast.pretrainer import Pretrainer

SIZE = (32, 32)


def small_mae(**options: float) -> Pretrainer:
    torch.manual_seed(0)
    return mae(wrap("test_vit", img_size=SIZE, patch_size=8), decoder_width=32, decoder_depth=1, **options)


@pytest.mark.parametrize("visible_weight", [0.0, 0.3])
def test_the_loss_is_the_mean_over_units_with_data(visible_weight: float) -> None:
    pretrainer, images = small_mae(visible_weight=visible_weight), torch.randn(2, 3, *SIZE)
    plan = pretrainer.draw(images, torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0.0, 0.5, 2.0]).repeat(2, 4)
    output = pretrainer(images, plan, unit_weight=weights)
    total, count = 0.0, 0.0
    for image in range(2):
        for row, unit in enumerate(plan.predict[image, 0].tolist()):
            weight = float(weights[image, unit])
            if plan.weight is not None:
                weight *= float(plan.weight[image, 0, row])
            if weight:
                error = (output.predictions[image, 0, row] - output.targets[image, 0, row]).square().mean()
                total, count = total + weight * float(error.detach()), count + weight
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_weights_of_one_change_nothing() -> None:
    for pretrainer in (small_mae(), simmim(wrap("test_vit", img_size=SIZE)), aim(wrap("test_vit", img_size=SIZE))):
        images = torch.randn(2, 3, *SIZE)
        plan = pretrainer.draw(images)
        ones = torch.ones(2, plan.grid.units)
        torch.testing.assert_close(pretrainer(images, plan, unit_weight=ones).loss, pretrainer(images, plan).loss)


def test_pixels_without_data_touch_neither_loss_nor_gradient() -> None:
    """Not even NaN does, where the unit is hidden and its weight is 0."""
    pretrainer, images = small_mae(), torch.randn(1, 3, *SIZE)
    plan = pretrainer.draw(images, torch.Generator().manual_seed(0))
    unit = int(plan.predict[0, 0, 0])
    weights = torch.ones(1, plan.grid.units)
    weights[0, unit] = 0.0
    row, col = divmod(unit, plan.grid.cols)
    broken = images.clone()
    broken[:, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = torch.nan
    losses, gradients = [], []
    for given in (images, broken):
        pretrainer.zero_grad()
        output = pretrainer(given, plan, unit_weight=weights)
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append(pretrainer.predictor.head.weight.grad.clone())
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)


def test_a_batch_of_which_nothing_counts_has_no_loss() -> None:
    pretrainer = small_mae()
    output = pretrainer(torch.randn(2, 3, *SIZE), unit_weight=torch.zeros(2, 16))
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert not pretrainer.predictor.head.weight.grad.any()


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.ones(2, 15), r"a weight for each unit of each image, \(2, 16\) on 4x4; got \(2, 15\)"),
        (torch.full((2, 16), -1.0), "0 or more; got -1.0"),
        (torch.full((2, 16), torch.nan), "0 or more; got nan"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_mae()(torch.randn(2, 3, *SIZE), unit_weight=weights)


def test_the_share_of_pixels_with_data() -> None:
    is_valid = torch.zeros(1, 4, 8, dtype=torch.bool)
    is_valid[0, :, :4] = True
    is_valid[0, 0, 4] = True
    assert valid_share(is_valid, (4, 4)).tolist() == [[1.0, 1 / 16]]


# ---- units that are seen --------------------------------------------------------------------------------------------


def test_units_that_are_seen_come_after_the_hidden_ones_and_count_less() -> None:
    plan = SeenToo(RandomMask(0.75), 0.25)(Grid(4, 4), 3)
    assert torch.equal(plan.predict[:, 0, :12], plan.hidden[:, 0])
    assert torch.equal(plan.predict[:, 0, 12:], plan.visible)
    assert plan.weight is not None
    assert plan.weight[0, 0].tolist() == [1.0] * 12 + [0.25] * 4
    assert plan.is_shown is not None
    assert torch.equal(plan.may_use().gather(-1, plan.predict[..., None])[..., 0], plan.is_shown)
    assert torch.equal(plan.rows(slice(1, 2)).predict, plan.predict[1:2])


def test_groups_each_predict_what_is_seen() -> None:
    plan = SeenToo(MultiBlock(), 0.5)(Grid(14, 14), 2)
    assert plan.predict.shape[1] == 4
    assert torch.equal(plan.predict[:, 2, -plan.visible.shape[1] :], plan.visible)
    assert plan.weight is not None
    assert plan.weight.shape == plan.predict.shape


def test_images_of_different_sizes_keep_the_discount_and_padding_counts_nothing() -> None:
    grids = [Grid(2, 2), Grid(4, 4)]
    plan = draw_each(SeenToo(RandomMask(0.5), 0.25), grids, Grid(4, 4))
    assert plan.weight is not None
    assert [float(row.sum()) for row in plan.weight] == [2 + 0.25 * 2, 8 + 0.25 * 8]


def test_a_seen_prediction_may_use_its_unit_and_does() -> None:
    pretrainer, images = small_mae(visible_weight=0.5), torch.randn(2, 3, *SIZE)
    plan = pretrainer.draw(images)
    assert no_leak(pretrainer, images, plan).honest
    strength, allowed = dependencies(pretrainer, images, plan)
    seen = plan.visible[0].tolist()
    assert all(bool(allowed[unit, unit]) and float(strength[unit, unit]) > 0 for unit in seen)
    hidden = plan.hidden[0, 0].tolist()
    assert not any(bool(allowed[unit, unit]) for unit in hidden)
    assert not strength[hidden][:, hidden].any()


def test_pictures_show_what_was_seen() -> None:
    pretrainer, images = small_mae(visible_weight=0.5), torch.randn(2, 3, *SIZE)
    plan = pretrainer.draw(images)
    drawn = reconstruct(pretrainer, images, plan)
    hidden = plan.is_hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert torch.equal(drawn.seen.isnan(), hidden)
    assert torch.equal(drawn.predicted[~hidden], images[~hidden])


def test_a_weight_of_zero_and_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0; got 0"):
        SeenToo(RandomMask(0.5), 0.0)
    with pytest.raises(ValueError, match="draws no MaskPlan"):
        SeenToo(RasterOrder(), 0.5)(Grid(4, 4), 1)
    with pytest.raises(ValueError, match=r"above 0; got -0\.1"):
        small_mae(visible_weight=-0.1)
