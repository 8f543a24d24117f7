"""Dense probes: classify each unit from its own feature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from patchcast.backbones.backbone import Backbone
from patchcast.data.masks import IGNORED
from patchcast.evaluation.features import Features, check_probe
from patchcast.evaluation.intervals import Interval
from patchcast.evaluation.knn import TEMPERATURE
from patchcast.evaluation.linear import LogisticProbe, logistic_path
from patchcast.modes import evaluating

UNITS = 20_000
"""Maximum number of units that a probe is fitted on."""
DENSE_NEIGHBORS = 20
DENSE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
RESAMPLES = 1000
UNIT_PIXELS = 8  # of a unit, as raw pixels

Batches = Iterable[tuple[Tensor, Tensor]]
Extract = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B rows cols D"]]
Score = Callable[[Float[Tensor, "M D"]], Float[Tensor, "M K"]]


@dataclass(frozen=True)
class Dense:
    """The result of one dense probe.

    Attributes:
        confusions: for each test image, numbers of pixels by true (row) and predicted (column) class.
    """

    confusions: Int64[Tensor, "I K K"]

    @property
    def mean_iou(self) -> Interval:
        """Mean intersection over union of the classes that occur, with its 95 % interval over test images."""
        return _with_interval(self.confusions, _mean_iou)

    @property
    def pixel_accuracy(self) -> Interval:
        """Share of pixels (without ignored ones) whose class is predicted, with its 95 % interval over test images."""
        return _with_interval(self.confusions, _pixel_accuracy)


@dataclass(frozen=True)
class DenseResult:
    """The results of the dense probes: a linear classifier of units, and their nearest neighbors."""

    linear: Dense
    knn: Dense
    strength: float


def units_of(backbone: Backbone) -> Extract:
    """The features of units as a map."""
    return lambda images: backbone.units(images).unflatten(1, backbone.grid(images))


def raw_units(grid: tuple[int, int]) -> Extract:
    """The baseline: pixels of each unit, averaged down to at most 8x8.

    >>> raw_units((2, 2))(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 2, 2, 192])
    """

    def extract(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B rows cols D"]:
        down, right = images.shape[2] // grid[0], images.shape[3] // grid[1]
        down, right = min(down, UNIT_PIXELS), min(right, UNIT_PIXELS)
        small = F.interpolate(images, (grid[0] * down, grid[1] * right), mode="area")
        cells = small.unflatten(2, (grid[0], down)).unflatten(4, (grid[1], right))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3)

    return extract


def dense_probe(
    backbone: Backbone | Extract, train: Batches, test: Batches, *, device: str = "cpu", seed: int = 0
) -> DenseResult:
    """Classify each unit from its own feature, and evaluate on the pixels of test images.

    In training, the class of a unit is that of most of its pixels. Class probabilities of test units are upsampled to
    pixels (bilinearly), and the most probable class is predicted. Both probes are fitted on up to 20,000 units of the
    training images: logistic regression, whose strength is chosen by likelihood on a fifth of those images, and the
    votes of 20 neighbors, weighted as in `knn_accuracy`.

    >>> from patchcast.backbones import wrap
    >>> images = torch.randn(4, 1, 1, 1).repeat(1, 3, 32, 32)
    >>> batches = [(images, (images[:, 0] > 0).long())]
    >>> torch.manual_seed(0).initial_seed(), len(dense_probe(raw_units((4, 4)), batches, batches).knn.confusions)
    (0, 4)

    Args:
        backbone: a backbone, or any function that returns a feature for each unit.
        train, test: batches of images and masks of the same size; 255 marks ignored pixels.
    Raises:
        ValueError: if training images have fewer than two classes, or there are too few to hold out a fifth.
    """
    if isinstance(backbone, Backbone):
        with evaluating(backbone.to(device)):
            return _probe(units_of(backbone), train, test, device, seed)
    with torch.no_grad():
        return _probe(backbone, train, test, device, seed)


def _probe(extract: Extract, train: Batches, test: Batches, device: str, seed: int) -> DenseResult:
    fitted, of_image = _labeled_units(extract, train, device)
    with torch.enable_grad():
        linear, strength = _fit(fitted, of_image, seed)
        few = fitted.take(_some(len(fitted), seed))
    classes = fitted.labels.unique()
    neighbors = _neighbors(few, classes)
    confusions: dict[str, list[Tensor]] = {"linear": [], "knn": []}
    for images, masks in test:
        features = extract(images.to(device)).float().cpu()
        for name, score in (("linear", linear), ("knn", neighbors)):
            scores = score(features.flatten(0, 2)).unflatten(0, features.shape[:3]).permute(0, 3, 1, 2)
            large = F.interpolate(scores.float(), tuple(masks.shape[1:]), mode="bilinear")
            confusions[name].append(confusion(masks, classes[large.argmax(dim=1)]))
    width = max(matrix.shape[-1] for parts in confusions.values() for matrix in parts)
    linear_found, knn_found = (
        torch.cat([F.pad(matrix, (0, width - matrix.shape[-1]) * 2) for matrix in confusions[name]])
        for name in ("linear", "knn")
    )
    return DenseResult(Dense(linear_found), Dense(knn_found), strength)


def unit_classes(masks: Int64[Tensor, "B H W"], grid: tuple[int, int]) -> Int64[Tensor, "B rows cols"]:
    """The class of most pixels of each unit; -1 if all are ignored.

    >>> unit_classes(torch.tensor([[[0, 0, 1, 255], [0, 2, 1, 255]]]), (1, 2)).tolist()
    [[[0, 1]]]
    """
    height, width = masks.shape[1] // grid[0], masks.shape[2] // grid[1]
    cells = masks.unflatten(1, (grid[0], height)).unflatten(3, (grid[1], width)).permute(0, 1, 3, 2, 4).flatten(3)
    counts = F.one_hot(cells, IGNORED + 1).sum(dim=3)[..., :IGNORED]
    return torch.where(counts.sum(dim=-1) > 0, counts.argmax(dim=-1), -1)


def confusion(masks: Int64[Tensor, "B H W"], predicted: Int64[Tensor, "B H W"]) -> Int64[Tensor, "B K K"]:
    """For each image, numbers of pixels by true and predicted class, without ignored pixels.

    >>> confusion(torch.tensor([[[0, 1, 255]]]), torch.tensor([[[0, 0, 0]]])).tolist()
    [[[1, 0], [1, 0]]]
    """
    counts = masks != IGNORED
    classes = int(torch.maximum(masks[counts].max() if bool(counts.any()) else predicted.max(), predicted.max())) + 1
    cell = torch.where(counts, masks * classes + predicted, classes**2).flatten(1)
    one = torch.zeros(len(masks), classes**2 + 1, dtype=torch.int64).scatter_add_(1, cell, torch.ones_like(cell))
    return one[:, :-1].unflatten(1, (classes, classes))


def _labeled_units(extract: Extract, batches: Batches, device: str) -> tuple[Features, Int64[Tensor, " N"]]:
    """The features and classes of all units with a class, and the index of their image."""
    xs, labels, of_image, images_before = [], [], [], 0
    for images, masks in batches:
        features = extract(images.to(device)).float().cpu()
        classes = unit_classes(masks, (features.shape[1], features.shape[2])).flatten(1)
        place = torch.arange(images_before, images_before + len(images))[:, None].expand_as(classes)
        known = classes >= 0
        xs.append(features.flatten(1, 2)[known])
        labels.append(classes[known])
        of_image.append(place[known])
        images_before += len(images)
    if not xs:
        raise ValueError("there are no training images")
    return Features(torch.cat(xs), torch.cat(labels)), torch.cat(of_image)


def _fit(units: Features, of_image: Int64[Tensor, " N"], seed: int) -> tuple[Score, float]:
    """Logistic regression, with its strength chosen on held-out images."""
    order = torch.randperm(int(of_image.max()) + 1, generator=torch.Generator().manual_seed(seed))
    if len(order) < 2:
        raise ValueError("one training image is not enough: some are held out to choose the strength")
    held = torch.isin(of_image, order[: max(1, len(order) // 5)]).nonzero().flatten()
    rest = (~torch.isin(of_image, order[: max(1, len(order) // 5)])).nonzero().flatten()
    fit = units.take(rest[_some(len(rest), seed)])
    judge = units.take(held[_some(len(held), seed)])
    check_probe(fit, judge)
    validation = {probe.strength: _likelihood(probe, judge) for probe in logistic_path(fit, DENSE_STRENGTHS)}
    best = max(validation, key=lambda strength: (validation[strength], -strength))
    every = units.labels.unique()
    probe = next(logistic_path(units.take(_some(len(units), seed)), [best]))
    place = torch.searchsorted(every, probe.classes)

    def score(x: Float[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        # Probabilities and not logits: when upsampled, a confident unit must not outweigh its neighbors.
        # A class may be missing in the sampled units.
        return torch.zeros(len(x), len(every)).index_copy(1, place, probe.logits(x).softmax(dim=1).float())

    return score, best


def _likelihood(probe: LogisticProbe, judge: Features) -> float:
    """The mean log-likelihood: unlike accuracy, it depends on the probabilities, which are upsampled. Classes that were
    not fitted are left out."""
    place = torch.searchsorted(probe.classes, judge.labels).clamp(max=len(probe.classes) - 1)
    known = probe.classes[place] == judge.labels
    return -float(F.cross_entropy(probe.logits(judge.x[known]), place[known]))


def _neighbors(units: Features, classes: Int64[Tensor, " K"]) -> Score:
    reference = F.normalize(units.x, dim=1).T
    votes = F.one_hot(torch.searchsorted(classes, units.labels), len(classes)).float()
    count = min(DENSE_NEIGHBORS, len(units))

    def score(x: Float[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        rows = []
        for part in F.normalize(x, dim=1).split(1024):
            similarity, index = (part @ reference).topk(count, dim=1)
            weight = (similarity / TEMPERATURE).softmax(dim=1)
            rows.append((weight[..., None] * votes[index]).sum(dim=1))
        return torch.cat(rows)

    return score


def _some(count: int, seed: int) -> Int64[Tensor, " M"]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:UNITS]


def _mean_iou(confusion: Int64[Tensor, "*R K K"]) -> Float[Tensor, "*R"]:
    right = confusion.diagonal(dim1=-2, dim2=-1).double()
    union = confusion.sum(dim=-1) + confusion.sum(dim=-2) - right
    occurs = confusion.sum(dim=-1) > 0
    return (torch.where(occurs, right / union.clamp(min=1), 0.0)).sum(dim=-1) / occurs.sum(dim=-1).clamp(min=1)


def _pixel_accuracy(confusion: Int64[Tensor, "*R K K"]) -> Float[Tensor, "*R"]:
    right = confusion.diagonal(dim1=-2, dim2=-1).sum(dim=-1).double()
    return right / confusion.sum(dim=(-2, -1)).clamp(min=1)


def _with_interval(confusions: Int64[Tensor, "I K K"], measure: Callable[[Tensor], Tensor]) -> Interval:
    """The value over all images, and its 95 % bootstrap interval over images (Efron)."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(RESAMPLES, len(confusions), dtype=torch.int64)
    drawn = torch.randint(len(confusions), (RESAMPLES, len(confusions)), generator=generator)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn))
    resampled = measure((counts.double() @ confusions.flatten(1).double()).unflatten(1, confusions.shape[1:]).long())
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(measure(confusions.sum(dim=0))), low, high)
