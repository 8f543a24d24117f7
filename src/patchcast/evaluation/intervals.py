"""How sure a number is."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from scipy.special import ndtri, stdtrit
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
        ValueError: if there is one sample only: its spread is unknown.
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"an interval needs at least 2 samples; got {count}")
    mean = float(samples.double().mean())
    half = float(stdtrit(count - 1, 0.975)) * float(samples.double().std()) / count**0.5
    return Interval(mean, mean - half, mean + half)


def accuracy_interval(correct: Bool[Tensor, " N"]) -> Interval:
    """An accuracy, with Wilson's 95 % interval for as many test images (Wilson 1927).

    >>> import torch
    >>> print(accuracy_interval(torch.arange(100) < 90))
    0.900 [0.826, 0.945]
    """
    count, z = len(correct), float(ndtri(0.975))
    share = float(correct.double().mean())
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval(share, centre - half, centre + half)


def paired_accuracy_difference(ours: Bool[Tensor, " N"], theirs: Bool[Tensor, " N"]) -> Interval:
    """By how much one probe is more accurate than another on the same test images, with its 95 % interval.

    Only the images on which they disagree count, so this is much narrower than two intervals side by side.

    >>> import torch
    >>> ours, theirs = torch.arange(100) < 90, torch.arange(100) < 80
    >>> print(paired_accuracy_difference(ours, theirs))
    0.100 [0.040, 0.160]
    """
    return mean_interval(ours.double() - theirs.double())
