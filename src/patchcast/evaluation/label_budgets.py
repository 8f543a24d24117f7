"""Few-label probes: accuracy with a few labeled images per class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchcast.data.splits import draw_per_class
from patchcast.evaluation.features import Features, check_probe
from patchcast.evaluation.intervals import Interval, mean_interval
from patchcast.evaluation.ridge import ridge_accuracy

ProbeFunction = Callable[[Features, Features], float]


@dataclass(frozen=True)
class FewLabels:
    """Accuracies for one number of labels per class, one for each draw of the labeled images.

    Attributes:
        accuracies: in [0, 1].
        drawn: a hash of the drawn images, so that only results of the same draws are paired.
    """

    per_class: int
    accuracies: Float[Tensor, " draws"]
    drawn: str

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation over draws."""
        return float(self.accuracies.std())

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval."""
        value, low, high = mean_interval(self.accuracies)
        return Interval(value, max(low, 0.0), min(high, 1.0))


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two feature sets for one number of labels per class.

    Attributes:
        difference: mean of ours minus theirs with its 95 % interval; ours is better if the interval is above 0.
        wins: share of draws in which ours was better, in [0, 1].
    """

    per_class: int
    difference: Interval
    wins: float


def few_labels(
    train: Features,
    test: Features,
    *,
    per_class: Sequence[int] = (1, 2, 5, 10, 20, 50),
    draws: int = 20,
    seed: int = 0,
    probe: ProbeFunction = ridge_accuracy,
) -> list[FewLabels]:
    """Probe with a few random labeled images of each class, repeatedly; always tested on all of `test`.

    The draws depend only on the labels, their order and the seed, so they are the same for every feature set of the
    same images: compare two with `paired_differences`. More draws or other numbers per class do not change the others.

    >>> labels = torch.arange(40) % 2
    >>> features = Features(labels[:, None].float(), labels)
    >>> [(row.per_class, row.mean) for row in few_labels(features, features, per_class=(1, 5), draws=3)]
    [(1, 1.0), (5, 1.0)]

    The intervals cover the choice of labeled images. They do not cover the choice of test images or the seed of the
    pretraining. If `per_class` includes nearly all images, draws are nearly equal and the interval means little.

    Args:
        draws: number of draws, at least 2.
        probe: `(train, test) -> accuracy`. It should choose its regularization from the given labels: a fixed one would
            favor one of two feature sets.
    Raises:
        ValueError: if a class has fewer images than labels per class, or the features cannot be probed.
    """
    check_probe(train, test)
    if draws < 2:
        raise ValueError(f"few_labels needs at least 2 draws to estimate their spread; got {draws}")
    rows = []
    for count in per_class:
        if count < 1:
            raise ValueError(f"labels per class must be at least 1; got {count}")
        accuracies, drawn = [], hashlib.blake2b(digest_size=16)
        for draw in range(draws):
            state = np.random.SeedSequence((seed, count, draw)).generate_state(1)
            index = draw_per_class(train.labels, count, generator=torch.Generator().manual_seed(int(state[0])))
            drawn.update(index.numpy().tobytes() + train.labels.cpu()[index].numpy().tobytes())
            accuracies.append(probe(train.take(index), test))
        rows.append(FewLabels(count, torch.tensor(accuracies, dtype=torch.float64), drawn.hexdigest()))
    return rows


def paired_differences(ours: Sequence[FewLabels], theirs: Sequence[FewLabels]) -> list[PairedDifference]:
    """Paired differences of `ours` and `theirs`, draw by draw.

    >>> row = lambda *accuracies: FewLabels(1, torch.tensor(accuracies), "same draws")
    >>> [found] = paired_differences([row(0.5, 0.7, 0.9)], [row(0.4, 0.6, 0.9)])
    >>> print(found.difference, round(found.wins, 2))
    0.067 [-0.077, 0.210] 0.67

    Raises:
        ValueError: if the two were not measured on the same draws of the same images.
    """
    differences = []
    for mine, other in zip(ours, theirs, strict=True):
        if mine.drawn != other.drawn:
            raise ValueError(
                f"{mine.per_class} and {other.per_class} labels per class were drawn differently; a paired difference "
                "needs the same images in the same order, the same seed and as many draws"
            )
        gained = mine.accuracies - other.accuracies
        differences.append(PairedDifference(mine.per_class, mean_interval(gained), float((gained > 0).double().mean())))
    return differences
