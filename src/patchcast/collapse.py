"""Collapse: features that have become the same for every image, which makes a self-distilled loss perfect."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class CollapseWarning(UserWarning):
    """Features carry next to nothing: a method with a teacher has found the trivial solution."""


@dataclass(frozen=True)
class Diversity:
    """How different features are from one another.

    Attributes:
        variance: the share of their mean square that is not the same for all: 0 where all are alike, 1 where their mean
            is zero.
        rank: the exponential of the entropy of the singular values of the centred features (Garrido et al. 2023,
            RankMe): the number of directions that they use, 1 to their width.
    """

    variance: float
    rank: float

    @property
    def collapsed(self) -> bool:
        """Less than 1 % differs, or all that differs lies in fewer than two directions."""
        return self.variance < 0.01 or self.rank < 2.0

    def collapsed_since(self, start: Diversity) -> bool:
        """Collapsed, and less than half as different as at the start: some images are alike to any network.

        >>> Diversity(0.004, 9.0).collapsed_since(Diversity(0.006, 9.0))
        False
        >>> Diversity(0.004, 9.0).collapsed_since(Diversity(0.4, 9.0))
        True
        """
        flat = self.variance < 0.01 and self.variance < start.variance / 2
        narrow = self.rank < 2.0 and self.rank - 1 < (start.rank - 1) / 2
        return flat or narrow

    @property
    def advice(self) -> str:
        return (
            f"features have collapsed: {self.variance:.1%} of them differs between images, in {self.rank:.1f} "
            "directions; lower the learning rate, raise the teacher's momentum, or check the plan's target sizes"
        )


@torch.no_grad()
def diversity(features: Float[Tensor, "N D"]) -> Diversity:
    """Variance and rank of features, one row an image (or a unit): a few hundred rows tell.

    >>> diversity(torch.ones(64, 8)).collapsed, diversity(torch.randn(64, 8)).collapsed
    (True, False)

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError(f"whether features differ takes two at least; got {len(features)}")
    x = features.double()
    centred = x - x.mean(dim=0)
    total = x.square().sum()
    variance = float(centred.square().sum() / total) if total > 0 else 0.0
    singular = torch.linalg.svdvals(centred)
    if singular.sum() <= 1e-12 * total.sqrt():
        return Diversity(variance, 1.0)
    share = singular / singular.sum()
    return Diversity(variance, float(torch.special.entr(share).sum().exp()))


def warn_of_collapse(features: Float[Tensor, "N D"]) -> Diversity:
    """`diversity`, with a `CollapseWarning` where the features have collapsed.

    >>> warn_of_collapse(torch.eye(64)).rank > 60
    True
    """
    found = diversity(features)
    if found.collapsed:
        warnings.warn(found.advice, CollapseWarning, stacklevel=2)
    return found
