"""Features are watched during a run, and their collapse is warned of once, against the run's own start."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from patchcast.collapse import CollapseWarning
from patchcast.data import Evaluate, open_images
from patchcast.training.log import curve
from patchcast.training.watch import FeatureWatch
from tests.training.test_run import KillAt, Killed, run, tiny

EVALUATE = Evaluate((8, 8), (0.3,), (0.4,))


def watch(pretrainer: Any) -> FeatureWatch:
    digits = open_images("digits")
    images = torch.stack([EVALUATE(digits[index].image) for index in range(64)])
    return FeatureWatch(pretrainer.backbone, images, every=3)


class Flatten(L.Callback):
    """From a step on, features are the same for every image."""

    def __init__(self, step: int) -> None:
        self.step = step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step >= self.step:
            module.pretrainer.backbone.model.norm.weight.zero_()
            module.pretrainer.backbone.model.norm.bias.fill_(1.0)


def test_features_are_logged_and_healthy_ones_warn_of_nothing(tmp_path: Path) -> None:
    pretrainer = tiny("mae")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        run(pretrainer, tmp_path, extra_callbacks=[watch(pretrainer)])
    steps, ranks = curve(tmp_path / "metrics.csv", "feature_rank")
    assert steps == [2, 5, 8, 11]
    assert min(ranks) > 1
    assert len(curve(tmp_path / "metrics.csv", "feature_variance")[0]) == 4


def test_a_collapse_is_warned_of_once(tmp_path: Path) -> None:
    pretrainer = tiny("mae")
    with pytest.warns(CollapseWarning, match=r"step 6: features have collapsed: 0\.0%") as told:
        run(pretrainer, tmp_path, extra_callbacks=[Flatten(4), watch(pretrainer)])
    assert len([each for each in told if each.category is CollapseWarning]) == 1


def test_a_run_that_goes_on_is_judged_by_its_first_start(tmp_path: Path) -> None:
    first, second = tiny("mae"), tiny("mae")
    begun, resumed = watch(first), watch(second)
    with pytest.raises(Killed):
        run(first, tmp_path, extra_callbacks=[begun, KillAt(7)])
    run(second, tmp_path, extra_callbacks=[resumed])
    assert resumed.start == begun.start is not None


def test_watching_changes_nothing(tmp_path: Path) -> None:
    alone, watched = tiny("mae"), tiny("mae")
    run(alone, tmp_path / "alone")
    run(watched, tmp_path / "watched", extra_callbacks=[watch(watched)])
    for one, two in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)
