"""`patchcast probe`: what a run has learnt, beside the same network before training and raw pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset

from patchcast.commands.build import build, evaluation
from patchcast.commands.folder import open_run
from patchcast.commands.tokenizer import kept_tokenizer
from patchcast.data import EvalSet, open_images
from patchcast.evaluation import (
    Features,
    FewLabels,
    Interval,
    accuracy_interval,
    extract,
    few_labels,
    knn_accuracy,
    linear_probe,
    paired_differences,
    raw_pixels,
    stratified_split,
)
from patchcast.recipe import Resolved

BATCH = 256
PIXELS_A_SIDE = 16  # raw pixels are averaged down to this: a classifier on 12,288 of them takes minutes
OURS, UNTRAINED, PIXELS = "pretrained", "untrained", "raw pixels"


@dataclass(frozen=True)
class Scores:
    """What the probes say of one set of features; accuracies as shares."""

    knn: float
    linear: Interval
    few: list[FewLabels]


def probe(run: Path, *, data: str | None, per_class: Sequence[int], draws: int, limit: int | None) -> dict[str, Scores]:
    """Measure a run's features, print a table, and write probe.json into the run folder."""
    recipe, pretrainer = open_run(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test, source = labelled_loaders(recipe, data or recipe.data, limit)
    console = Console()
    with console.status("Computing features"):
        features = {
            OURS: (
                extract(pretrainer.backbone, train, device=device),
                extract(pretrainer.backbone, test, device=device),
            ),
        }
        before = build(recipe, kept_tokenizer(run)).backbone
        features[UNTRAINED] = (extract(before, train, device=device), extract(before, test, device=device))
        size = (min(recipe.image_size[0], PIXELS_A_SIDE), min(recipe.image_size[1], PIXELS_A_SIDE))
        features[PIXELS] = (raw_pixels(train, size=size), raw_pixels(test, size=size))
    per_class = _affordable(per_class, features[OURS][0])
    scores: dict[str, Scores] = {}
    for name, (fitted, judged) in features.items():
        with console.status(f"Probing {name}"):
            scores[name] = score(fitted, judged, per_class=per_class, draws=draws)
    names = {
        **dict.fromkeys(scores, ""),
        PIXELS: f"{size[0]}x{size[1]}",
        UNTRAINED: "as timm gives it" if recipe.pretrained else "",
    }
    console.print(table(scores, per_class, source, len(features[OURS][0].labels), draws, names))
    (run / "probe.json").write_text(json.dumps(_plain(scores, source), indent=2) + "\n")
    console.print(verdict(scores))
    console.print(f"Written to {run / 'probe.json'}. Next: [bold]patchcast export {run} --out FOLDER[/]")
    return scores


def score(train: Features, test: Features, *, per_class: Sequence[int], draws: int) -> Scores:
    """kNN with 20 neighbours, the linear probe on all labels, and the few-label probe."""
    linear = linear_probe(train, test)
    correct = linear.probe.predict(test.x) == test.labels
    neighbours = min(20, len(train.labels))
    return Scores(
        knn=knn_accuracy(train, test, k=(neighbours,))[neighbours],
        linear=accuracy_interval(correct),
        few=few_labels(train, test, per_class=per_class, draws=draws),
    )


def labelled_loaders(recipe: Resolved, data: str, limit: int | None) -> tuple[DataLoader[Any], DataLoader[Any], str]:
    """Loaders of labelled images to fit on and to judge by, and what they are, in words.

    Raises:
        ValueError: if the source has no labels.
    """
    images = open_images(data, channels=recipe.channels)
    if images.labels is None:
        raise ValueError(f"{data} has no labels, which a probe needs; give --data a labelled source")
    transform = evaluation(recipe)
    train: Any = EvalSet(images, transform)
    held_out = [split for split in ("test", "validation", "val") if split in images.splits]
    generator = torch.Generator().manual_seed(0)
    if held_out:
        test: Any = EvalSet(open_images(data, split=held_out[0], channels=recipe.channels), transform)
        source = f"{data}, judged on its {held_out[0]} split"
    else:
        fit, judge = stratified_split(torch.from_numpy(images.labels), 0.2, generator=generator)
        train, test = Subset(train, fit.tolist()), Subset(EvalSet(images, transform), judge.tolist())
        source = f"{data}, judged on a fifth of it held out"
    if limit is not None and limit < len(train):
        train = Subset(train, torch.randperm(len(train), generator=generator)[:limit].tolist())
    return DataLoader(train, batch_size=BATCH), DataLoader(test, batch_size=BATCH), source


def table(
    scores: dict[str, Scores], per_class: Sequence[int], source: str, images: int, draws: int, names: dict[str, str]
) -> Table:
    """One row for each set of features, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {source}", title_justify="left", title_style="bold")
    shown.add_column("labels per class")
    for count in per_class:
        shown.add_column(f"{count}", justify="right")
    shown.add_column("all", justify="right")
    shown.add_column("kNN", justify="right")
    for name, found in scores.items():
        few = [f"{100 * row.mean:.1f} ± {100 * row.std:.1f}" for row in found.few]
        label = f"{name}, {names[name]}" if names[name] else name
        shown.add_row(label, *few, f"{100 * found.linear.value:.1f}", f"{100 * found.knn:.1f}")
    shown.caption = (
        f"Linear classifier; few labels: mean ± spread over {draws} draws; all: {images:,} images; "
        "kNN: 20 neighbours among all."
    )
    shown.caption_justify = "left"
    return shown


def verdict(scores: dict[str, Scores]) -> str:
    """In one sentence: where pretraining helped, and where not, judged on the same draws."""
    sentences = []
    for other in (UNTRAINED, PIXELS):
        found = paired_differences(scores[OURS].few, scores[other].few)
        ahead = [f"{row.per_class}" for row in found if row.difference.low > 0]
        behind = [f"{row.per_class}" for row in found if row.difference.high < 0]
        name = "the untrained network" if other == UNTRAINED else other
        parts = [f"ahead of {name} with {', '.join(ahead)} labels per class"] if ahead else []
        parts += [f"behind {name} with {', '.join(behind)}"] if behind else []
        sentences.append(" and ".join(parts) or f"level with {name}")
    return f"Pretraining is {'; '.join(sentences)} (95 % intervals over the draws)."


def _affordable(per_class: Sequence[int], train: Features) -> list[int]:
    """The numbers of labels per class that every class has."""
    fewest = int(train.labels.bincount()[train.labels.unique()].min())
    return [count for count in per_class if count <= fewest]


def _plain(scores: dict[str, Scores], source: str) -> dict[str, Any]:
    found: dict[str, Any] = {"data": source}
    for name, each in scores.items():
        found[name] = {
            "knn_20": each.knn,
            "linear": each.linear._asdict(),
            "few_labels": [
                {"per_class": row.per_class, "mean": row.mean, "std": row.std, "draws": len(row.accuracies)}
                for row in each.few
            ],
        }
    return found
