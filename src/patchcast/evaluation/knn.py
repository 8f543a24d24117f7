"""Weighted nearest neighbors, a probe without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchcast.data.splits import stratified_split
from patchcast.evaluation.features import Features, check_probe
from patchcast.evaluation.linear import standardize

TEMPERATURE = 0.07
NEIGHBORS = (1, 5, 10, 20, 50, 200)
CHUNK_ELEMENTS = 2**24  # elements of the similarity matrix in memory at a time: 64 MiB of float32


def knn_accuracy(train: Features, test: Features, *, k: Sequence[int] = NEIGHBORS) -> dict[int, float]:
    """Accuracy, in [0, 1], of the vote of the `k` nearest training images, for each k.

    Neighbors are the most similar by cosine, each voting with exp(similarity / 0.07) (Wu et al. 2018, section 3.4;
    the protocol of DINO, Caron et al. 2021).

    >>> train = Features(torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([0, 1]))
    >>> knn_accuracy(train, Features(torch.tensor([[2., 1.], [1., 2.]]), torch.tensor([0, 0])), k=(1, 50))
    {1: 0.5}

    Args:
        k: numbers of neighbors. Values above the number of training images are skipped: they would all give the same
            vote.
    Raises:
        ValueError: if no k is left, or the features cannot be probed.
    """
    return {count: float(hits.double().mean()) for count, hits in _correct(train, test, k).items()}


@dataclass(frozen=True)
class KnnResult:
    """The result of the nearest-neighbor probe.

    Attributes:
        accuracy: on the test images, in [0, 1], with the chosen k and scale.
        k: chosen on held-out training images.
        validation: held-out accuracy for each k, of the chosen scale.
        by_k: test accuracy for each k, of the chosen scale, for information only: it is not used to choose k.
        correct: True for test images that were classified correctly with the chosen k and scale.
        standardized: whether features with mean 0 and variance 1 on the training images were chosen over raw ones.
    """

    accuracy: float
    k: int
    validation: dict[int, float]
    by_k: dict[int, float]
    correct: Bool[Tensor, " N"]
    standardized: bool = False


def knn_probe(
    train: Features, test: Features, *, k: Sequence[int] = NEIGHBORS, held_out: float = 0.2, seed: int = 0
) -> KnnResult:
    """`knn_accuracy` with what does best on held-out training images: the number of neighbors, and raw features or
    standardized ones (mean 0 and variance 1 on the training images).

    Short pretraining leaves a few directions of large variance, which hide all others from the cosine; of public
    weights raw features are often better. Of equals, raw features and the largest number of neighbors are taken.

    >>> labels = torch.arange(60) % 3
    >>> features = Features(F.one_hot(labels, 3).float(), labels)
    >>> result = knn_probe(features, features, k=(1, 5, 50))
    >>> result.accuracy, result.k
    (1.0, 5)

    Args:
        held_out: share of each class to choose on.
        seed: of the held-out draw, the only random step.
    Raises:
        ValueError: if the features cannot be probed, or no class has two images, so that none can be held out.
    """
    check_probe(train, test)
    fit, held = stratified_split(train.labels, held_out, generator=torch.Generator().manual_seed(seed))
    fitted, judged = train.take(fit), train.take(held)
    raw = knn_accuracy(fitted, judged, k=k)
    scaled = knn_accuracy(*standardized_on(fitted, judged), k=k)
    standardized = max(scaled.values()) > max(raw.values())
    validation = scaled if standardized else raw
    best = max(validation, key=lambda count: (validation[count], count))
    correct = _correct(*(standardized_on(train, test) if standardized else (train, test)), k)
    by_k = {count: float(hits.double().mean()) for count, hits in correct.items()}
    return KnnResult(by_k[best], best, validation, by_k, correct[best], standardized)


def standardized_on(train: Features, test: Features) -> tuple[Features, Features]:
    """Both with the mean and the deviation that bring `train` to mean 0 and variance 1.

    >>> train = Features(torch.tensor([[0., 1.], [2., 1.]]), torch.tensor([0, 1]))
    >>> [each.x.tolist() for each in standardized_on(train, Features(torch.tensor([[4., 1.]]), torch.tensor([1])))]
    [[[-1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0]]]
    """
    x, mean, scale = standardize(train.x)
    return Features(x.float(), train.labels), Features(((test.x.double() - mean) / scale).float(), test.labels)


def nearest_images(train: Features, test: Features, count: int) -> Int[Tensor, "N K"]:
    """The `count` training images that are nearest to each test image, by the cosine of standardized features.

    >>> train = Features(torch.tensor([[0.0, 1.0], [2.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1, 1]))
    >>> nearest_images(train, train, 1).tolist()
    [[0], [1], [2]]
    """
    fitted, judged = standardized_on(train, test)
    return (F.normalize(judged.x, dim=1) @ F.normalize(fitted.x, dim=1).T).topk(count, dim=1).indices


def _correct(train: Features, test: Features, k: Sequence[int]) -> dict[int, Bool[Tensor, " N"]]:
    check_probe(train, test)
    usable = sorted({count for count in k if 1 <= count <= len(train)})
    if not usable:
        raise ValueError(f"no k of {tuple(k)} is between 1 and the {len(train)} training images")
    reference = F.normalize(train.x, dim=1).T
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    hits: dict[int, list[Tensor]] = {count: [] for count in usable}
    rows = max(1, CHUNK_ELEMENTS // len(train))
    for x, labels in zip(test.x.split(rows), test.labels.split(rows), strict=True):
        similarity, index = (F.normalize(x, dim=1) @ reference).topk(usable[-1], dim=1)
        weights, votes = (similarity / TEMPERATURE).exp(), train.labels[index]
        for count in usable:
            hits[count].append(_vote(weights[:, :count], votes[:, :count], classes) == labels)
    return {count: torch.cat(parts) for count, parts in hits.items()}


def _vote(weights: Float[Tensor, "B K"], votes: Int[Tensor, "B K"], classes: int) -> Int[Tensor, " B"]:
    return weights.new_zeros(len(weights), classes).scatter_add_(1, votes, weights).argmax(dim=1)
