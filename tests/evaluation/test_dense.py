"""Dense probes against answers that are known."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import jaccard_score

from patchcast.evaluation.dense import Dense, confusion, dense_probe, raw_units, unit_classes


def checkers(count: int, *, seed: int, noise: float = 0.1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of 4x4 units of 8 pixels, each unit of one of three colors, which is its class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (count, 4, 4), generator=generator)
    mask = classes.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    colors = torch.eye(3)[mask].movedim(-1, 1)
    images = colors + noise * torch.randn(count, 3, 32, 32, generator=generator)
    return list(zip(images.split(4), mask.split(4), strict=True))


def test_units_that_tell_their_class_are_all_told() -> None:
    result = dense_probe(raw_units((4, 4)), checkers(12, seed=0), checkers(8, seed=1))
    for found in (result.linear, result.knn):
        # Enlarged bilinearly, a pixel at a corner takes less than a third from its own unit: two alike can outvote it.
        assert found.pixel_accuracy.value > 0.93
        assert found.mean_iou.value > 0.88
    assert result.linear.pixel_accuracy.value == pytest.approx(result.knn.pixel_accuracy.value, abs=0.01)


def test_units_that_tell_nothing_are_at_chance() -> None:
    def blind(images: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(images))
        return torch.randn(len(images), 4, 4, 6, generator=generator)

    result = dense_probe(blind, checkers(20, seed=0), checkers(20, seed=1))
    for found in (result.linear, result.knn):
        assert 0.2 < found.pixel_accuracy.value < 0.5, "there are three classes"
        assert found.mean_iou.low < found.mean_iou.value < found.mean_iou.high


def test_mean_iou_agrees_with_scikit_learn() -> None:
    true, predicted = torch.randint(0, 4, (6, 10, 10)), torch.randint(0, 4, (6, 10, 10))
    predicted[:, :5] = true[:, :5]
    found = Dense(confusion(true, predicted))
    expected = jaccard_score(true.flatten().numpy(), predicted.flatten().numpy(), average="macro")
    assert found.mean_iou.value == pytest.approx(expected)
    assert found.pixel_accuracy.value == pytest.approx(float((true == predicted).double().mean()))


def test_ignored_pixels_count_for_nothing() -> None:
    true, predicted = torch.tensor([[[0, 1, 255, 255]]]), torch.tensor([[[0, 1, 1, 0]]])
    assert Dense(confusion(true, predicted)).pixel_accuracy.value == 1.0
    nothing = torch.full((1, 2, 2), 255)
    assert int(confusion(nothing, torch.zeros_like(nothing)).sum()) == 0
    assert unit_classes(nothing, (1, 1)).tolist() == [[[-1]]]


def test_a_class_that_only_test_images_have_is_never_right() -> None:
    test = [(images, torch.full_like(mask, 7)) for images, mask in checkers(4, seed=1)]
    result = dense_probe(raw_units((4, 4)), checkers(12, seed=0), test)
    assert result.linear.pixel_accuracy.value == result.linear.mean_iou.value == 0.0


def test_one_class_or_image_is_refused() -> None:
    one_class = [(images, torch.zeros_like(mask)) for images, mask in checkers(8, seed=0)]
    with pytest.raises(ValueError, match="are of class 0; a probe needs two"):
        dense_probe(raw_units((4, 4)), one_class, one_class)
    with pytest.raises(ValueError, match="one training image is not enough"):
        dense_probe(raw_units((4, 4)), checkers(1, seed=0), checkers(1, seed=0))
