"""`patchcast probe`: nearest neighbors and linear classifiers on frozen features, and measures without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast import options
from patchcast.backbones.capabilities import READ_AS
from patchcast.data import TrainSet
from patchcast.evaluation.baselines import BASELINES, PIXELS_A_SIDE
from patchcast.evaluation.features import Features, extract, extract_with
from patchcast.evaluation.intervals import Interval, accuracy_interval, balanced_accuracy, paired_accuracy_difference
from patchcast.evaluation.knn import KnnResult, knn_probe
from patchcast.evaluation.label_budgets import FewLabels, PairedDifference, few_labels, paired_differences
from patchcast.evaluation.label_free import alpha_req, lidar, rankme
from patchcast.evaluation.labeled import LOADER_BATCH, Labeled, some_of
from patchcast.evaluation.linear import LinearResult, linear_probe
from patchcast.evaluation.protocol import OURS, Protocol, Request, Subject, new_table, points

LIDAR_IMAGES = 1000
"""Number of images that LiDAR uses, as in its paper."""
FITTED_ON_GPU = 10_000_000
"""Values in the training features from which on probes are fitted on a GPU.

5,000 features of 384 values took 3.5 s on an H100 and 1.6 s on eight cores of its machine; 500 took 1.4 and 0.5 s:
small fits wait for the launches of kernels. From where on a GPU is faster was not measured.
"""


@dataclass(frozen=True)
class Scores:
    """The results of the probes of one set of features; accuracies are in [0, 1].

    Attributes:
        correct: True for test images that the linear probe classified correctly.
        balanced: the linear probe's mean accuracy over classes.
        rankme, alpha_req, lidar: of a network's features; None if they were not or cannot be measured.
    """

    knn: KnnResult
    linear: LinearResult
    correct: Tensor
    few: list[FewLabels]
    balanced: float
    rankme: float | None = None
    alpha_req: float | None = None
    lidar: float | None = None

    @property
    def accuracy(self) -> Interval:
        """Of the linear probe."""
        return accuracy_interval(self.correct)

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        label_free = {"rankme": self.rankme, "alpha_req": self.alpha_req, "lidar": self.lidar}
        return {
            "knn_20": self.knn.by_k.get(20),
            "knn": {
                **accuracy_interval(self.knn.correct)._asdict(),
                "k": self.knn.k,
                "standardized": self.knn.standardized,
                "by_k": self.knn.by_k,
            },
            "linear": {**self.accuracy._asdict(), "strength": self.linear.strength, "balanced": self.balanced},
            "few_labels": [
                {"per_class": row.per_class, "mean": row.mean, "std": row.std, "draws": len(row.accuracies)}
                for row in self.few
            ],
            **{name: value for name, value in label_free.items() if value is not None},
        }


class FeatureProtocol(Protocol[Scores]):
    """kNN, the linear probe on all labels and on few of them, RankMe, alpha-ReQ and LiDAR of pooled features."""

    file = "probe"

    def __init__(self, options: options.FeatureOptions, request: Request, subject: Subject) -> None:
        if options.lidar < 0 or options.lidar == 1:
            raise ValueError(
                f"LiDAR needs at least 2 views of each image (its paper takes 10 or 50); got {options.lidar}"
            )
        self.options, self.request = options, request
        self.cache = request.cache if options.cache else None
        self.labeled = request.labeled()
        self.description = self.labeled.description
        self.per_class = self.labeled.affordable(options.per_class)

    def measure(self, subject: Subject) -> Scores:
        readout, where = self.options.readout, self.request
        train, test = (
            extract(subject.backbone, loader, readout=readout, device=where.device, cache=self.cache)
            for loader in self.labeled.loaders(subject.evaluate)
        )
        scores = replace(self._score(train, test), rankme=rankme(train.x), alpha_req=_or_none(alpha_req, train.x))
        if not self.options.lidar:
            return scores
        return replace(scores, lidar=lidar_of(subject, self.labeled, self.options, device=where.device))

    def baselines(self, subject: Subject) -> Iterator[tuple[str, Callable[[], Scores]]]:
        for name, make in BASELINES.items():

            def measure(make: Callable[[int], torch.nn.Module] = make) -> Scores:
                model = make(self.request.channels)
                train, test = (
                    extract_with(model, loader, device=self.request.device, cache=self.cache)
                    for loader in self.labeled.loaders(subject.evaluate)
                )
                return self._score(train, test)

            yield name, measure

    def _score(self, train: Features, test: Features) -> Scores:
        few = few_labels(train, test, per_class=self.per_class, draws=self.options.draws)
        if train.x.numel() >= FITTED_ON_GPU:
            train, test = train.to(self.request.device), test.to(self.request.device)
        linear = linear_probe(train, test)
        correct = (linear.probe.predict(test.x) == test.labels).cpu()
        return Scores(
            knn=knn_probe(train, test),
            linear=linear,
            correct=correct,
            balanced=balanced_accuracy(correct, test.labels.cpu()),
            few=few,
        )

    def tables(self, results: Mapping[str, Scores]) -> list[Table]:
        balanced = ["all, balanced"] if self.labeled.is_imbalanced else []
        accuracy = new_table(self.description, "labels per class", *map(str, self.per_class), "all", *balanced, "kNN")
        for name, scores in results.items():
            few = [f"{100 * row.mean:.1f} ± {100 * row.std:.1f}" for row in scores.few]
            shown = [scores.linear.accuracy, *([scores.balanced] if balanced else []), scores.knn.accuracy]
            accuracy.add_row(name, *few, *(f"{100 * value:.1f}" for value in shown))
        said = READ_AS[self.options.readout]
        neighbors = ", ".join(f"{scores.knn.k}{'*' * scores.knn.standardized}" for scores in results.values())
        accuracy.caption = (
            f"Linear classifier; few labels: mean ± spread over {self.options.draws} draws; all: "
            f"{len(self.labeled.train):,} images, tested on {len(self.labeled.test):,}; kNN among all, with "
            f"{neighbors} neighbors (*: on standardized features). A network's feature is {said}. Regularization, "
            "neighbors and scale are chosen on held-out training images. Raw pixels are averaged down to at most "
            f"{PIXELS_A_SIDE}x{PIXELS_A_SIDE}."
        )
        return [accuracy, self._label_free_table(results)]

    def _label_free_table(self, results: Mapping[str, Scores]) -> Table:
        views = self.options.lidar
        columns = ("RankMe", "alpha-ReQ", *(["LiDAR"] if views else []))
        table = new_table(f"{len(self.labeled.train):,} training images", "network", *columns, title="Without labels,")
        for name, scores in results.items():
            if scores.rankme is not None:
                values = [scores.rankme, scores.alpha_req, *([scores.lidar] if views else [])]
                table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in values))
        images = min(LIDAR_IMAGES, len(self.labeled.train))
        table.caption = (
            f"LiDAR: {views} views of {images:,} images."
            if views
            else "LiDAR needs several views of images: --lidar 10"
        )
        return table

    def record(self, results: Mapping[str, Scores]) -> dict[str, Any]:
        rows: dict[str, Any] = {name: scores.plain() for name, scores in results.items()}
        if OURS in results:
            ours = results[OURS].correct
            rows["differences"] = {
                name: paired_accuracy_difference(ours, scores.correct)._asdict()
                for name, scores in results.items()
                if name != OURS
            }
        return {**rows, "readout": self.options.readout}

    def correct(self, result: Scores) -> Tensor:
        return result.correct

    def comparisons(self, results: Mapping[str, Scores]) -> list[str]:
        if OURS not in results:
            return []
        ours = results[OURS]
        lines = [f"vs {name}: {versus(ours, other)}" for name, other in results.items() if name != OURS]
        return [
            *lines,
            "95 % intervals, over the same test images and over the same draws. They do not cover the seed.",
        ]


def versus(ours: Scores, other: Scores) -> str:
    """The difference of our linear probe and another one, as text."""
    gained = paired_accuracy_difference(ours.correct, other.correct)
    return as_text(gained, paired_differences(ours.few, other.few))


def as_text(gained: Interval, few: Sequence[PairedDifference]) -> str:
    """A difference with all labels, and differences with few labels, as text.

    >>> gained, sure, unsure = Interval(0.1, 0.04, 0.16), Interval(0.2, 0.1, 0.3), Interval(0.0, -0.1, 0.1)
    >>> as_text(gained, [PairedDifference(2, unsure, 0.5), PairedDifference(5, sure, 1.0)])
    '+10.0 points [+4.0, +16.0] with all labels; +20.0 at 5 labels/class; no difference at 2 labels/class'
    """
    parts = [f"{points(gained)} with all labels"]
    for row in few:
        if row.difference.low > 0 or row.difference.high < 0:
            parts.append(f"{100 * row.difference.value:+.1f} at {row.per_class} labels/class")
    same = [f"{row.per_class}" for row in few if row.difference.low <= 0 <= row.difference.high]
    return "; ".join([*parts, *([f"no difference at {', '.join(same)} labels/class"] if same else [])])


def lidar_of(subject: Subject, labeled: Labeled, chosen: options.FeatureOptions, *, device: str = "cpu") -> float:
    """LiDAR of some training images, augmented as in training.

    Raises:
        ValueError: if there is only one view or one image.
    """
    some = TrainSet(some_of(labeled.train, LIDAR_IMAGES), subject.augment, seed=0)
    parts = torch.arange(len(some)).split(LOADER_BATCH)

    def view(number: int) -> DataLoader[Any]:
        keys = [[(number, place) for place in part.tolist()] for part in parts]
        return DataLoader(some, batch_sampler=keys)

    views: Sequence[Tensor] = [
        extract(subject.backbone, view(number), readout=chosen.readout, device=device).x
        for number in range(chosen.lidar)
    ]
    return lidar(torch.stack(list(views), dim=1))


def _or_none(measure: Callable[[Tensor], float], x: Tensor) -> float | None:
    """A measure, or None if there are too few features for it."""
    try:
        return measure(x)
    except ValueError:
        return None
