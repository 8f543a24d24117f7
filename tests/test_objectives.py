"""Several objectives over one pass of the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchcast.backbones import Grid, wrap
from patchcast.drawing.reconstruction import reconstruct
from patchcast.geometry import take
from patchcast.honesty import noise_floor
from patchcast.losses import absolute, cross_entropy, squared
from patchcast.methods import ijepa, mae
from patchcast.objectives import Objective, Predictors, SumOfLosses, Targets, sum_of
from patchcast.plans import RandomMask
from patchcast.predictors import Decoder, MLPHead
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes, EMAFeatures, Pixels, patchify
from patchcast.training.log import Log, read_metrics
from patchcast.views import Drop


class Brightness:
    """A tokenizer of 300 codes: more than bf16 can tell apart."""

    vocabulary = 300

    def __init__(self, stride: tuple[int, int]) -> None:
        self.stride = stride

    def encode(self, images: Tensor) -> Tensor:
        return (patchify(images, self.stride).mean(dim=-1) * 100 + 150).long().clamp(0, 299)


def decoder(width: int, outputs: int, grid: Grid) -> Decoder:
    return Decoder(32, grid=grid, depth=1, heads=1, embed=nn.Linear(width, 32), head=nn.Linear(32, outputs))


def two(weight: float = 0.5) -> Pretrainer:
    backbone = wrap("test_vit", img_size=32, patch_size=8)
    grid = backbone.grid((32, 32))
    pixels, codes = Pixels((8, 8), channels=3), Codes(Brightness((8, 8)))
    parts = sum_of(
        pixels=Objective(decoder(backbone.width, pixels.outputs, grid), pixels, squared),
        codes=Objective(decoder(backbone.width, codes.outputs, grid), codes, cross_entropy, weight=weight),
    )
    return Pretrainer(backbone, plan=RandomMask(0.5), view=Drop(), **parts)


def test_the_loss_is_the_sum_of_what_each_method_has_alone() -> None:
    torch.manual_seed(0)
    pretrainer, images = two(), torch.randn(2, 3, 32, 32)
    plan = pretrainer.draw(images)
    output = pretrainer(images, plan)
    parts, targets = pretrainer.predictor, pretrainer.target
    assert isinstance(parts, Predictors)
    assert isinstance(targets, Targets)
    for name, loss in (("pixels", squared), ("codes", cross_entropy)):
        alone = Pretrainer(
            pretrainer.backbone,
            plan=pretrainer.plan,
            view=pretrainer.view,
            predictor=parts.predictors[name],
            target=targets.each[name],
            loss=loss,
        )
        torch.testing.assert_close(output.losses[name], alone(images, plan).loss.detach())
    torch.testing.assert_close(output.loss, output.losses["pixels"] + 0.5 * output.losses["codes"])
    assert not output.losses["pixels"].requires_grad


def test_codes_stay_whole_numbers() -> None:
    pretrainer, images = two(), torch.randn(2, 3, 32, 32)
    target = pretrainer.target
    assert isinstance(target, Targets)
    expected = target.each["codes"](images)
    assert torch.equal(target.split(target(images))["codes"], expected)
    assert expected.unique().numel() > 5


def test_one_decoder_may_serve_all() -> None:
    torch.manual_seed(0)
    backbone = wrap("test_vit", img_size=32, patch_size=8)
    targets = Targets({"contrast": Pixels((8, 8), channels=3), "raw": Pixels((8, 8), channels=3, normalize=False)})
    loss = SumOfLosses({"contrast": (squared, 1.0), "raw": (absolute, 2.0)}, targets)
    predictor = decoder(backbone.width, targets.outputs, backbone.grid((32, 32)))
    pretrainer = Pretrainer(backbone, plan=RandomMask(0.5), view=Drop(), predictor=predictor, target=targets, loss=loss)
    images = torch.randn(2, 3, 32, 32)
    output = pretrainer(images)
    wanted = take(Pixels((8, 8), channels=3, normalize=False)(images), output.plan.predict)
    torch.testing.assert_close(output.losses["raw"], (output.predictions[..., 192:] - wanted).abs().mean().detach())


def test_a_copy_reads_its_own_target_and_the_noise_floor_is_that_of_both() -> None:
    torch.manual_seed(0)
    assert noise_floor(two(), steps=40) > 0.97


def test_the_first_that_can_be_drawn_is_drawn() -> None:
    pretrainer, images = two(), torch.rand(1, 3, 32, 32)
    target = pretrainer.target
    assert target.is_drawn
    values = torch.randn(1, 16, target.outputs)
    expected = Pixels((8, 8), channels=3).to_pixels(values[..., :192], images)
    assert torch.equal(target.to_pixels(values, images), expected)
    undrawn = Targets({"codes": Codes(Brightness((8, 8)))})
    assert not undrawn.is_drawn
    with pytest.raises(ValueError, match="cannot be drawn"):
        undrawn.to_pixels(values, images)


def test_a_teacher_among_them_follows_and_others_need_no_after_step() -> None:
    torch.manual_seed(0)
    backbone = wrap("test_vit", img_size=32, patch_size=8)
    both = Targets({"pixels": Pixels((8, 8), channels=3), "teacher": EMAFeatures(backbone, momentum=0.5)})
    assert both.follows
    assert not Targets({"pixels": Pixels((8, 8), channels=3)}).follows
    assert ijepa(backbone).target.follows
    assert not mae(backbone).target.follows
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(1.0)
    before = next(both.each["teacher"].parameters()).clone()
    both.update(backbone)
    assert not torch.equal(next(both.each["teacher"].parameters()), before)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of an objective"):
        two(weight)


def test_what_does_not_fit_is_refused() -> None:
    pixels = Pixels((8, 8), channels=3)
    with pytest.raises(ValueError, match="at least one objective"):
        sum_of()
    with pytest.raises(ValueError, match="a loss for each target"):
        SumOfLosses({"other": (squared, 1.0)}, Targets({"pixels": pixels}))


def test_predictors_of_any_plan_go_with_those_of_masks() -> None:
    head = MLPHead(64, 8, grid=Grid(4, 4), hidden=16, depth=1)
    both = Predictors({"decoder": decoder(64, 8, Grid(4, 4)), "head": head})
    assert both.plans is Decoder.plans
    assert both.reads_hidden
    assert both.reads_prefix


def test_metrics_have_a_column_for_each(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.csv")
    log.add(1, {"loss": 3.0, "loss_pixels": 1.0, "loss_teacher": 2.0, "other": 5.0})
    log.write()
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert (row["loss"], row["loss_pixels"], row["loss_teacher"]) == ("3.0", "1.0", "2.0")
    assert "other" not in row
    resumed = Log(tmp_path / "metrics.csv")
    resumed.resume(1)
    resumed.write()
    assert read_metrics(tmp_path / "metrics.csv") == [row]


def test_pictures_hide_what_is_neither_seen_nor_predicted() -> None:
    """I-JEPA's context is one block, of which some units belong to no target."""
    pretrainer = ijepa(wrap("test_vit", img_size=64, patch_size=8), predictor_depth=1, pixel_weight=0.5)
    images = torch.randn(2, 3, 64, 64)
    plan: Any = pretrainer.draw(images, torch.Generator().manual_seed(0))
    result = reconstruct(pretrainer, images, plan)
    visible = torch.zeros(2, 64, dtype=torch.bool).scatter(1, plan.visible, True)
    neither = ~visible.scatter(1, plan.predict.flatten(1), True)
    assert neither.any()
    is_hidden = patchify(result.seen, (8, 8)).isnan().all(dim=-1)
    assert torch.equal(is_hidden, ~visible)
    assert (patchify(result.predicted, (8, 8))[neither] == 0).all()
