"""Evaluation data as it is: classes of one image, few test images, uneven classes, splits without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.data import open_source
from patchcast.evaluation.intervals import balanced_accuracy, paired_accuracy_difference
from patchcast.evaluation.labeled import open_labeled
from patchcast.evaluation.protocol import points


def draw(root: Path, **counts: int) -> Path:
    """A folder of noise: `train__a=3` is three images in train/a."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        folder = root.joinpath(*name.split("__"))
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_an_interval_of_two_images_is_not_shown() -> None:
    gained = paired_accuracy_difference(torch.tensor([True, True]), torch.tensor([True, False]))
    assert gained == (0.5, -1.0, 1.0)
    assert points(gained) == "+50.0 points (too few test images for an interval)"


@pytest.mark.parametrize("count", [1, 2, 100])
def test_no_difference_in_few_images_is_no_proof_of_none(count: int) -> None:
    same = torch.ones(count, dtype=torch.bool)
    value, low, high = paired_accuracy_difference(same, same)
    assert value == 0.0
    assert high == -low == pytest.approx(1 - 0.05 ** (1 / count))
    assert paired_accuracy_difference(same, ~same).high == 1.0


def test_the_share_of_the_largest_class_is_said(tmp_path: Path) -> None:
    uneven = draw(tmp_path / "uneven", train__cat=4, train__dog=4, test__cat=19, test__dog=1)
    labeled = open_labeled(str(uneven), channels=3)
    assert "95.0 % of the test images are of class cat" in labeled.description
    assert labeled.is_imbalanced
    even = open_labeled(str(draw(tmp_path / "even", train__a=4, train__b=4, test__a=3, test__b=3)), channels=3)
    assert "of class" not in even.description
    assert not even.is_imbalanced
    always_cat = torch.tensor([True] * 19 + [False])
    assert balanced_accuracy(always_cat, torch.tensor([0] * 19 + [1])) == 0.5


def test_the_split_to_judge_on_can_be_named(tmp_path: Path) -> None:
    data = draw(tmp_path, train__a=4, train__b=4, val__a=2, val__b=2, test__a=3, test__b=3)
    source = open_source(str(data))
    assert [len(source.labeled(None, split).test) for split in (None, "validation", "Test")] == [6, 4, 6]
    with pytest.raises(ValueError, match=r"has no split 'extra'; it has train, test, val"):
        source.labeled(None, "extra")
    with pytest.raises(ValueError, match="the probe is fitted on split train"):
        source.labeled(None, "train")


def test_a_class_of_one_image_is_fitted_on(tmp_path: Path) -> None:
    labeled = open_labeled(str(draw(tmp_path, a=10, b=1)), channels=3)
    assert (len(labeled.train), len(labeled.test)) == (9, 2)
