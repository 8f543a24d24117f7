"""`patchcast probe`: what a run or a timm model has learnt, beside the same network before training and raw pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.backbones import Backbone
from patchcast.commands.labelled import BATCH, Labelled, open_labelled, some_of
from patchcast.data import TrainSet
from patchcast.evaluation import (
    Features,
    FewLabels,
    Interval,
    KnnResult,
    LinearResult,
    accuracy_interval,
    alpha_req,
    extract,
    few_labels,
    knn_probe,
    lidar,
    linear_probe,
    paired_accuracy_difference,
    paired_differences,
    rankme,
    raw_pixels,
)
from patchcast.files import cache_folder
from patchcast.recipe import Device
from patchcast.runs.network import OURS, UNTRAINED, Network, is_run, open_network, torch_device

PIXELS_A_SIDE = 16  # raw pixels are averaged down to this: a classifier on 12,288 of them takes minutes
PIXELS = "raw pixels"
SEEN_AGAIN = 1000
"""Images whose views LiDAR looks at, as in its paper."""


@dataclass(frozen=True)
class Scores:
    """What the probes say of one set of features; accuracies as shares.

    Attributes:
        correct: which test images the linear probe told right.
        rankme, alpha_req, lidar: of a network's features; None where they were not measured, or cannot be.
    """

    knn: KnnResult
    linear: LinearResult
    correct: Tensor
    few: list[FewLabels]
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
            "knn": {**accuracy_interval(self.knn.correct)._asdict(), "k": self.knn.k, "by_k": self.knn.by_k},
            "linear": {**self.accuracy._asdict(), "strength": self.linear.strength},
            "few_labels": [
                {"per_class": row.per_class, "mean": row.mean, "std": row.std, "draws": len(row.accuracies)}
                for row in self.few
            ],
            **{name: value for name, value in label_free.items() if value is not None},
        }


def probe(
    source: Path | str,
    *,
    data: str | None,
    per_class: Sequence[int],
    draws: int,
    limit: int | None,
    untrained: bool = False,
    views: int = 0,
    device: Device = "auto",
    cached: bool = True,
    out: Path | None = None,
    typed: str = "",
) -> dict[str, Scores]:
    """Measure the features of a run or a timm model, print tables, and write what was found as JSON.

    Args:
        data: labelled images; None for the run's own.
        untrained: look at the network before training, and not at its weights.
        views: of each image, for LiDAR; 0 leaves it out.
        cached: keep features in the user's cache folder, and take them from there.
        out: the JSON file; None for probe.json in the run folder, and for none where a timm model is probed.
        typed: the command that this is the result of, for the record.
    Raises:
        ValueError: for anything that the user can put right, in one sentence.
    """
    if views < 0 or views == 1:
        raise ValueError(f"LiDAR needs at least 2 views of each image (its paper takes 10 or 50); got {views}")
    network = open_network(source, untrained=untrained)
    labelled = labelled_for(network, data, limit)
    where, cache = torch_device(device), feature_cache() if cached else None
    console = Console()
    per_class = _affordable(per_class, labelled)
    scores: dict[str, Scores] = {}
    backbones = network.beside_its_start()
    for name, backbone in backbones.items():
        with console.status(f"Features and probes: {name}"):
            train, test = (
                extract(backbone, each, device=where, cache=cache) for each in labelled.loaders(network.evaluate)
            )
            found = lidar_of(backbone, network, labelled, views=views, device=where) if views else None
            scores[name] = score(train, test, per_class=per_class, draws=draws, device=where, seen_again=found)
        backbone.cpu()
    with console.status(f"Features and probes: {PIXELS}"):
        scores[PIXELS] = score_pixels(network, labelled, per_class=per_class, draws=draws, device=where)
    console.print(table(scores, per_class, labelled, draws, _labels_of_rows(scores, network)))
    console.print(label_free_table(scores, views, labelled))
    if OURS in scores:
        console.print(verdict(scores))
    if cache is not None:
        console.print(f"Features are kept in {cache}, which may be deleted at any time.")
    out = out or network.own_file("probe.json")
    if out is not None:
        write_json(out, {"command": typed, "network": network.name, "data": labelled.told, **_plain(scores)})
        following = f" Next: [bold]patchcast report {source}[/]" if is_run(source) else ""
        console.print(f"Written to {out}.{following}")
    return scores


def labelled_for(network: Network, data: str | None, limit: int | None) -> Labelled:
    """The labelled images that a network is to be probed with: the run's own if none are named.

    Raises:
        ValueError: if they have no labels, or none are named and the network is no run's.
    """
    source = data or (None if network.recipe is None else network.recipe.data)
    if source is None:
        raise ValueError(f"{network.name} is a model of timm, which has no data of its own: give --data LABELLED")
    return open_labelled(source, channels=network.backbone.channels, limit=limit)


def feature_cache() -> Path:
    """Where features are kept: a folder for each network and way of extraction, named by a hash of its weights."""
    return cache_folder() / "features"


def score(
    train: Features,
    test: Features,
    *,
    per_class: Sequence[int],
    draws: int,
    device: str = "cpu",
    is_network: bool = True,
    seen_again: float | None = None,
) -> Scores:
    """The nearest neighbours, the linear probe on all labels, the few-label probe, and what needs no labels."""
    train, test = train.to(device), test.to(device)
    linear = linear_probe(train, test)
    return Scores(
        knn=knn_probe(train, test),
        linear=linear,
        correct=(linear.probe.predict(test.x) == test.labels).cpu(),
        few=few_labels(train, test, per_class=per_class, draws=draws),
        rankme=rankme(train.x) if is_network else None,
        alpha_req=_or_none(alpha_req, train.x) if is_network else None,
        lidar=seen_again,
    )


def score_pixels(
    network: Network, labelled: Labelled, *, per_class: Sequence[int], draws: int, device: str = "cpu"
) -> Scores:
    """What the probes say of the images as the network sees them, averaged down."""
    size = _size_of_pixels(network)
    train, test = (raw_pixels(each, size=size) for each in labelled.loaders(network.evaluate))
    return score(train, test, per_class=per_class, draws=draws, device=device, is_network=False)


def lidar_of(backbone: Backbone, network: Network, labelled: Labelled, *, views: int, device: str) -> float:
    """LiDAR of some training images, augmented as in training.

    Raises:
        ValueError: if there is one view, or one image.
    """
    some = TrainSet(some_of(labelled.train, SEEN_AGAIN), network.augment, seed=0)
    parts = torch.arange(len(some)).split(BATCH)

    def view(number: int) -> DataLoader[Any]:
        keys = [[(number, place) for place in part.tolist()] for part in parts]
        return DataLoader(some, batch_sampler=keys)

    features = [extract(backbone, view(number), device=device).x for number in range(views)]
    return lidar(torch.stack(features, dim=1))


def table(
    scores: Mapping[str, Scores],
    per_class: Sequence[int],
    labelled: Labelled,
    draws: int,
    names: Mapping[str, str],
) -> Table:
    """One row for each set of features, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {labelled.told}", title_justify="left", title_style="bold")
    shown.add_column("labels per class")
    for count in per_class:
        shown.add_column(f"{count}", justify="right")
    shown.add_column("all", justify="right")
    shown.add_column("kNN", justify="right")
    for name, found in scores.items():
        few = [f"{100 * row.mean:.1f} ± {100 * row.std:.1f}" for row in found.few]
        shown.add_row(names[name], *few, f"{100 * found.linear.accuracy:.1f}", f"{100 * found.knn.accuracy:.1f}")
    neighbours = ", ".join(f"{found.knn.k}" for found in scores.values())
    shown.caption = (
        f"Linear classifier; few labels: mean ± spread over {draws} draws; all: {len(labelled.train):,} images, "
        f"judged on {len(labelled.test):,}; kNN among all, with {neighbours} neighbours. Regularisation and neighbours "
        "are chosen on held-out training images."
    )
    shown.caption_justify = "left"
    return shown


def label_free_table(scores: Mapping[str, Scores], views: int, labelled: Labelled) -> Table:
    """What can be said of a network's features without a label."""
    shown = Table(box=SIMPLE_HEAD, title="Without labels", title_justify="left", title_style="bold")
    shown.add_column("features of training images")
    for measure in ("RankMe", "alpha-ReQ", *(["LiDAR"] if views else [])):
        shown.add_column(measure, justify="right")
    for name, found in scores.items():
        if found.rankme is not None:
            values = [found.rankme, found.alpha_req, *([found.lidar] if views else [])]
            shown.add_row(name, *("-" if value is None else f"{value:.2f}" for value in values))
    images = min(SEEN_AGAIN, len(labelled.train))
    shown.caption = (
        f"LiDAR: {views} views of {images:,} images." if views else "LiDAR needs several views of images: --lidar 10"
    )
    shown.caption_justify = "left"
    return shown


def verdict(scores: Mapping[str, Scores]) -> str:
    """In a few words: where pretraining helped, and where not; judged on the same draws and the same test images."""
    sentences = []
    for other in (UNTRAINED, PIXELS):
        found = paired_differences(scores[OURS].few, scores[other].few)
        ahead = [f"{row.per_class}" for row in found if row.difference.low > 0]
        behind = [f"{row.per_class}" for row in found if row.difference.high < 0]
        name = "the untrained network" if other == UNTRAINED else other
        parts = [f"ahead of {name} with {', '.join(ahead)} labels per class"] if ahead else []
        parts += [f"behind {name} with {', '.join(behind)}"] if behind else []
        with_few = " and ".join(parts) or f"level with {name}" if found else f"beside {name}"
        sentences.append(f"{with_few}; with all, {points(difference(scores, other))}")
    return f"Pretraining is {'; '.join(sentences)} (95 % intervals: over the draws; over the test images)."


def difference(scores: Mapping[str, Scores], other: str) -> Interval:
    """By how much the linear probe of ours is more accurate, on the same test images."""
    return paired_accuracy_difference(scores[OURS].correct, scores[other].correct)


def points(gained: Interval) -> str:
    """A difference of accuracies in percentage points.

    >>> points(Interval(0.05, -0.012, 0.112))
    '+5.0 points [-1.2, +11.2]'
    """
    return f"{100 * gained.value:+.1f} points [{100 * gained.low:+.1f}, {100 * gained.high:+.1f}]"


def write_json(out: Path, found: Mapping[str, Any]) -> None:
    """What a probe found, for people and for `patchcast report`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")


def _size_of_pixels(network: Network) -> tuple[int, int]:
    height, width = network.size
    return min(height, PIXELS_A_SIDE), min(width, PIXELS_A_SIDE)


def _labels_of_rows(scores: Mapping[str, Scores], network: Network) -> dict[str, str]:
    size = _size_of_pixels(network)
    starts_from_timm = network.recipe is not None and network.recipe.pretrained
    names = {PIXELS: f"{PIXELS}, {size[0]}x{size[1]}"}
    if starts_from_timm:
        names[UNTRAINED] = f"{UNTRAINED}, as timm gives it"
    return {name: names.get(name, name) for name in scores}


def _affordable(per_class: Sequence[int], labelled: Labelled) -> list[int]:
    """The numbers of labels per class that every class has."""
    counts = torch.from_numpy(labelled.train.labels).unique(return_counts=True)[1]
    return [count for count in per_class if count <= int(counts.min())]


def _or_none(measure: Callable[[Tensor], float], x: Tensor) -> float | None:
    """A measure, or nothing where these features are too few for it."""
    try:
        return measure(x)
    except ValueError:
        return None


def _plain(scores: Mapping[str, Scores]) -> dict[str, Any]:
    found: dict[str, Any] = {name: each.plain() for name, each in scores.items()}
    if OURS in scores:
        found["differences"] = {other: difference(scores, other)._asdict() for other in scores if other != OURS}
    return found
