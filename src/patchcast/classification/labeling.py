"""What the labels of an image are: one class, or a set of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score
from torch import Tensor

from patchcast.data.columns import SEPARATOR


@runtime_checkable
class Labeling(Protocol):
    """How logits are compared with labels, which come as one number for each image."""

    @property
    def measure(self) -> str:
        """The name of what is larger for a better classifier."""
        ...

    def loss(
        self, logits: Float[Tensor, "B K"], labels: Tensor, weights: Float[Tensor, " K"] | None, smoothing: float
    ) -> Float[Tensor, ""]:
        """The training loss; labels are numbers, or probabilities of classes if they were mixed."""
        ...

    def judge(self, logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> tuple[float, float]:
        """Loss and measure on images that were not trained on."""
        ...


@dataclass(frozen=True)
class OneLabel:
    """Each image is of one class.

    >>> OneLabel().judge(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))[1]
    0.5
    """

    measure: str = "accuracy"

    def loss(
        self, logits: Float[Tensor, "B K"], labels: Tensor, weights: Float[Tensor, " K"] | None, smoothing: float
    ) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)

    def judge(self, logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> tuple[float, float]:
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())


ONE_LABEL = OneLabel()


@dataclass(frozen=True)
class LabelSets:
    """Each image is of any number of classes; its label is the number of a set.

    >>> names, sets = label_sets(["cat;dog", "dog", ";"])
    >>> names, sets.table.tolist()
    (['cat', 'dog'], [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])

    Args:
        table: for each set and class, 1 if the class is in the set.
    """

    table: Float[Tensor, "S K"]
    measure: str = "mean_average_precision"

    def targets(self, labels: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """For each image and class, 1 if the image is of the class."""
        return self.table.to(labels.device)[labels]

    def loss(
        self, logits: Float[Tensor, "B K"], labels: Tensor, weights: Float[Tensor, " K"] | None, smoothing: float
    ) -> Float[Tensor, ""]:
        targets = self.targets(labels) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)

    def judge(self, logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> tuple[float, float]:
        targets = self.targets(labels)
        precision = average_precisions(logits, targets)
        return float(F.binary_cross_entropy_with_logits(logits, targets)), float(np.nanmean(precision))


def label_sets(labels: Sequence[str]) -> tuple[list[str], LabelSets]:
    """The names of the classes in labels such as "cat;dog", and the set of each label; ";" alone is the empty set.

    Raises:
        ValueError: if they name fewer than two classes.
    """
    sets = [{name.strip() for name in label.split(SEPARATOR)} - {""} for label in labels]
    names = sorted(set().union(*sets))
    if len(names) < 2:
        raise ValueError(
            f"--multi_label reads labels such as cat{SEPARATOR}dog, and these name {len(names)} class"
            f"{'es' * (len(names) != 1)}; leave it out if each image has one label"
        )
    table = torch.tensor([[float(name in each) for name in names] for each in sets])
    return names, LabelSets(table)


def average_precisions(scores: Float[Tensor, "N K"], targets: Float[Tensor, "N K"]) -> Float[np.ndarray, " K"]:
    """The area under the precision-recall curve of each class; NaN for a class without an image.

    >>> scores, targets = torch.tensor([[0.9], [0.2], [0.4]]), torch.tensor([[1.0], [0.0], [1.0]])
    >>> average_precisions(scores, targets).tolist()
    [1.0]
    """
    found = np.full(targets.shape[1], np.nan)
    for place in range(targets.shape[1]):
        if targets[:, place].any():
            found[place] = average_precision_score(targets[:, place].cpu().numpy(), scores[:, place].cpu().numpy())
    return found
