"""Confidence intervals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Interval(NamedTuple):
    """A value with its 95 % confidence interval.

    >>> print(Interval(0.91234, 0.9, 0.92))
    0.912 [0.900, 0.920]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(samples: Float[Tensor, " N"]) -> Interval:
    """The mean of independent samples, with Student's 95 % interval.

    >>> import torch
    >>> print(mean_interval(torch.tensor([0.8, 0.9, 1.0])))
    0.900 [0.652, 1.148]

    Raises:
        ValueError: if there is only one sample.
    """
    from scipy.stats import ttest_1samp  # imported here, because it takes as long as torch

    if len(samples) < 2:
        raise ValueError(f"an interval needs at least 2 samples; got {len(samples)}")
    values = samples.double().cpu().numpy()
    if values.min() == values.max():
        return Interval(*[float(values.mean())] * 3)  # scipy divides by the standard deviation
    low, high = ttest_1samp(values, popmean=0.0).confidence_interval(0.95)
    return Interval(float(values.mean()), float(low), float(high))


def accuracy_interval(correct: Bool[Tensor, " N"]) -> Interval:
    """An accuracy with Wilson's 95 % interval for this number of test images (Wilson 1927).

    >>> import torch
    >>> print(accuracy_interval(torch.arange(100) < 90))
    0.900 [0.826, 0.945]
    """
    from scipy.stats import binomtest

    right, count = int(correct.sum()), len(correct)
    low, high = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return Interval(right / count, float(low), float(high))


def paired_accuracy_difference(ours: Bool[Tensor, " N"], theirs: Bool[Tensor, " N"]) -> Interval:
    """The difference in accuracy of two probes on the same test images, with its 95 % interval.

    Only images on which they disagree matter, so it is much narrower than the two separate intervals suggest. It stays
    within [-1, 1]. Where no two images differ, Student's interval would have no width: then it is as wide as the share
    of other images that this many may have missed (the exact binomial bound).

    >>> import torch
    >>> ours, theirs = torch.arange(100) < 90, torch.arange(100) < 80
    >>> print(paired_accuracy_difference(ours, theirs))
    0.100 [0.040, 0.160]
    """
    gained = ours.double() - theirs.double()
    if gained.min() == gained.max():
        value, missed = float(gained[0]), 1 - 0.05 ** (1 / len(gained))
        value, low, high = value, value - missed, value + missed
    else:
        value, low, high = mean_interval(gained)
    return Interval(value, max(-1.0, low), min(1.0, high))


def balanced_accuracy(correct: Bool[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """The mean over classes of each class's accuracy: 1 of n classes is worth 1 / n, however many images it has.

    >>> import torch
    >>> balanced_accuracy(torch.tensor([True, True, True, False]), torch.tensor([0, 0, 0, 1]))
    0.5
    """
    return float(torch.stack([correct[labels == label].double().mean() for label in labels.unique()]).mean())
