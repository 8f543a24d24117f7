"""Collapse: features that are the same for every image, with which the loss of a learned target is perfect."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchcast.evaluation.label_free import effective_rank


class CollapseWarning(UserWarning):
    """Features have almost no information: a method with a teacher has reached the trivial solution."""


@dataclass(frozen=True)
class Diversity:
    """How different features are from one another.

    Attributes:
        variance: variance over mean square: 0 if all features are equal, 1 if their mean is zero.
        effective_rank: exp of the entropy of the singular values of the centered features (Roy and Vetterli 2007): the
            number of directions in which they differ, 1 to their width. RankMe is that of features as they are, not
            centered: `patchcast.rankme`. In metrics.csv the column is `feature_rank`.
    """

    variance: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Variance below 1 %, or effective rank below 2."""
        return self.variance < 0.01 or self.effective_rank < 2.0

    def collapsed_since(self, start: Diversity) -> bool:
        """Collapsed, and less than half as diverse as at the start: some images look the same to any network.

        >>> Diversity(0.004, 9.0).collapsed_since(Diversity(0.006, 9.0))
        False
        >>> Diversity(0.004, 9.0).collapsed_since(Diversity(0.4, 9.0))
        True
        """
        flat = self.variance < 0.01 and self.variance < start.variance / 2
        narrow = self.effective_rank < 2.0 and self.effective_rank - 1 < (start.effective_rank - 1) / 2
        return flat or narrow

    @property
    def advice(self) -> str:
        return (
            f"features have collapsed: {self.variance:.1%} of them differs between images, in "
            f"{self.effective_rank:.1f} directions; lower the learning rate, raise the teacher's momentum, or check "
            "the plan's target sizes"
        )


@torch.no_grad()
def diversity(features: Float[Tensor, "N D"]) -> Diversity:
    """Variance and effective rank of features, one row per image (or unit). A few hundred rows are enough.

    >>> diversity(torch.ones(64, 8)).collapsed, diversity(torch.randn(64, 8)).collapsed
    (True, False)

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError(f"diversity needs at least two features; got {len(features)}")
    x = features.double()
    centered = x - x.mean(dim=0)
    total = x.square().sum()
    variance = float(centered.square().sum() / total) if total > 0 else 0.0
    singular = torch.linalg.svdvals(centered)
    if singular.sum() <= 1e-12 * total.sqrt():
        return Diversity(variance, 1.0)
    return Diversity(variance, effective_rank(singular))


def warn_of_collapse(features: Float[Tensor, "N D"]) -> Diversity:
    """`diversity`, with a `CollapseWarning` if the features have collapsed.

    >>> warn_of_collapse(torch.eye(64)).effective_rank > 60
    True
    """
    result = diversity(features)
    if result.collapsed:
        warnings.warn(result.advice, CollapseWarning, stacklevel=2)
    return result
