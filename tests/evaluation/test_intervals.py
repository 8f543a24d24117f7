from __future__ import annotations

import pytest
import torch

from patchcast.evaluation import accuracy_interval, mean_interval, paired_accuracy_difference


def test_wilson_known_answers():
    """Newcombe 1998, table I: 81 of 263, 15 of 148 and 0 of 20."""
    for count, correct, low, high in [(263, 81, 0.2553, 0.3662), (148, 15, 0.0624, 0.1605), (20, 0, 0.0, 0.1611)]:
        found = accuracy_interval(torch.arange(count) < correct)
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)


def test_mean_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    found = [mean_interval(torch.randn(5, generator=generator)) for _ in range(1000)]
    covered = sum(each.low < 0 < each.high for each in found) / 1000
    assert 0.93 < covered < 0.97


def test_pairs_narrow_the_difference():
    ours = torch.arange(1000) < 900
    theirs = torch.arange(1000) < 880
    difference = paired_accuracy_difference(ours, theirs)
    assert difference.low > 0
    assert accuracy_interval(ours).low < accuracy_interval(theirs).high
