"""Features are watched during a run, and their collapse is warned of once, against the run's own start."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from patchcast.collapse import CollapseWarning
from patchcast.data import Evaluate, open_images
from patchcast.training.log import curve
from patchcast.training.looks import FeatureWatch, Look
from tests.training.test_run import killed_at, run, tiny

EVALUATE = Evaluate((8, 8), (0.3,), (0.4,))


def watch(pretrainer: Any) -> FeatureWatch:
    digits = open_images("digits")
    images = torch.stack([EVALUATE(digits[index].image) for index in range(64)])
    return FeatureWatch(pretrainer.backbone, images)


class Flatten(Look):
    """From a step on, features are the same for every image."""

    def __init__(self, pretrainer: Any, step: int) -> None:
        self.norm, self.step = pretrainer.backbone.model.norm, step

    def look(self, step: int, device: torch.device) -> dict[str, float]:
        if step >= self.step:
            self.norm.weight.zero_()
            self.norm.bias.fill_(1.0)
        return {}


def test_features_are_logged_and_healthy_ones_warn_of_nothing(tmp_path: Path) -> None:
    pretrainer = tiny("mae")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        run(pretrainer, tmp_path, eval_every=3, looks=[watch(pretrainer)])
    steps, ranks = curve(tmp_path / "metrics.csv", "feature_rank")
    assert steps == [3, 6, 9, 12]
    assert min(ranks) > 1
    assert len(curve(tmp_path / "metrics.csv", "feature_variance")[0]) == 4


def test_a_collapse_is_warned_of_once(tmp_path: Path) -> None:
    pretrainer = tiny("mae")
    with pytest.warns(CollapseWarning, match=r"step 6: features have collapsed: 0\.0%") as told:
        run(pretrainer, tmp_path, eval_every=3, looks=[Flatten(pretrainer, 4), watch(pretrainer)])
    assert len([each for each in told if each.category is CollapseWarning]) == 1


def test_a_run_that_goes_on_is_judged_by_its_first_start(tmp_path: Path) -> None:
    first, second = tiny("mae"), tiny("mae")
    begun, resumed = watch(first), watch(second)
    with killed_at(7):
        run(first, tmp_path, looks=[begun])
    run(second, tmp_path, looks=[resumed])
    assert resumed.begun == begun.begun is not None


def test_watching_changes_nothing(tmp_path: Path) -> None:
    alone, watched = tiny("mae"), tiny("mae")
    run(alone, tmp_path / "alone")
    run(watched, tmp_path / "watched", looks=[watch(watched)])
    for one, two in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)
