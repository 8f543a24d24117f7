"""Weighted nearest neighbours: the probe with nothing to train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from patchcast.evaluation.features import Features, check_probe

TEMPERATURE = 0.07
CHUNK_ELEMENTS = 2**24  # of the similarity matrix held at a time: 64 MiB of float32


def knn_accuracy(train: Features, test: Features, *, k: Sequence[int] = (1, 5, 10, 20, 50, 200)) -> dict[int, float]:
    """Accuracy, in [0, 1], of the vote of the `k` nearest training images, for each k.

    Neighbours are the most similar by cosine, each voting with exp(similarity / 0.07) (Wu et al. 2018, section 3.4;
    the protocol of DINO, Caron et al. 2021).

    >>> train = Features(torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([0, 1]))
    >>> knn_accuracy(train, Features(torch.tensor([[2., 1.], [1., 2.]]), torch.tensor([0, 0])), k=(1, 50))
    {1: 0.5}

    Args:
        k: numbers of neighbours. One larger than the training set is left out of the answer: it would repeat the vote
            of everybody under a number that was not used.
    Raises:
        ValueError: if no k is left, or the features cannot be probed.
    """
    check_probe(train, test)
    usable = sorted({count for count in k if 1 <= count <= len(train)})
    if not usable:
        raise ValueError(f"no k of {tuple(k)} lies between 1 and the {len(train)} training images")
    reference = F.normalize(train.x, dim=1).T
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    hits = dict.fromkeys(usable, 0)
    rows = max(1, CHUNK_ELEMENTS // len(train))
    for x, labels in zip(test.x.split(rows), test.labels.split(rows), strict=True):
        similarity, index = (F.normalize(x, dim=1) @ reference).topk(usable[-1], dim=1)
        weights, votes = (similarity / TEMPERATURE).exp(), train.labels[index]
        for count in usable:
            predicted = _vote(weights[:, :count], votes[:, :count], classes)
            hits[count] += int((predicted == labels).sum())
    return {count: hits[count] / len(test) for count in usable}


def _vote(weights: Float[Tensor, "B K"], votes: Int[Tensor, "B K"], classes: int) -> Int[Tensor, " B"]:
    return weights.new_zeros(len(weights), classes).scatter_add_(1, votes, weights).argmax(dim=1)
