"""The page about a fine-tuned model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from patchcast.evaluation.intervals import accuracy_interval
from patchcast.report.charts import Curve, line_chart
from patchcast.report.model_numbers import CLASSES_SHOWN, MAIN, ModelNumbers
from patchcast.report.page import (
    Html,
    Section,
    Tile,
    commands,
    definitions,
    html_table,
    matrix_table,
    page,
    page_footer,
    side_by_side,
)
from patchcast.report.pictures import embedded
from patchcast.report.shares import interval_of, percent_of
from patchcast.training.progress import duration

MATRIX_UP_TO = 20
"""Classes up to which the confusion matrix is a table; of more it is the picture of the folder."""


def model_page(found: ModelNumbers) -> str:
    """The HTML of a page about a fine-tuned model."""
    metrics = found.metrics
    subtitle = f"{metrics['data']}. Folder: {found.folder}"
    sections = [*_classes(found), *_matrix(found), *_mistakes(found), *_learned(found), _use(found)]
    title = f"{Path(found.start).name} fine-tuned on {Path(found.data).name}"
    return page(title, subtitle, _tiles(found), sections, page_footer(), answers=_model_answers(found))


def _model_answers(found: ModelNumbers) -> Html:
    metrics, measure = found.metrics, found.measure
    main = metrics[measure]
    value, low, high = (100 * main[name] for name in ("value", "low", "high"))
    good = (
        f"{MAIN[measure][0].upper()}{MAIN[measure][1:]} {value:.1f} % on {metrics['test_images']:,} test images (95 % "
        f"interval {low:.1f} to {high:.1f})."
    )
    if measure == "accuracy":
        good += f" Naming the largest class every time would give {100 * metrics['largest_class_share']:.1f} %."
    if worst := found.by_class:
        name, value = min(worst.items(), key=lambda pair: pair[1])
        good += f" The weakest class is {name} ({100 * value:.1f} %)."
    cost = (
        f"{duration(metrics['processor_seconds'])} of processor time, for {metrics['training_images']:,} training "
        f"images; {metrics['validation_images']:,} more chose the weights."
    )
    trained = f"{found.start}: {metrics['how']}."
    return definitions({"What was trained": trained, "How good is it?": good, "What it cost": cost}, name="answers")


def _tiles(found: ModelNumbers) -> list[Tile]:
    metrics, measure = found.metrics, found.measure
    main = metrics[measure]
    tiles = [
        Tile(percent_of(main), MAIN[measure], f"95 % interval {100 * main['low']:.1f} to {100 * main['high']:.1f}")
    ]
    if measure == "accuracy":
        largest = f"largest class: {100 * metrics['largest_class_share']:.1f} % of the images"
        tiles.append(Tile(f"{100 * metrics['balanced_accuracy']:.1f} %", "mean accuracy of classes", largest))
    elif measure == "mean_iou":
        tiles.append(Tile(percent_of(metrics["pixel_accuracy"]), "pixels right"))
    else:
        tiles.append(Tile(percent_of(metrics["exactly_right"]), "all labels of an image right"))
    tiles.append(Tile(f"{len(found.names)}", "classes", f"{metrics['test_images']:,} test images"))
    tiles.append(
        Tile(f"{metrics['training_images']:,}", "training images", f"{metrics['validation_images']:,} to choose")
    )
    return tiles


def _learned(found: ModelNumbers) -> list[Section]:
    chosen, column = found.metrics["chosen"], f"validation_{found.measure}"
    named = f"validation {MAIN[found.measure]}"
    if strengths := chosen.get("strengths"):
        rows = [[f"{row['strength']:.3g}", f"{100 * row[column]:.1f}"] for row in strengths]
        best = next(place for place, row in enumerate(strengths) if row["strength"] == chosen["strength"])
        note = (
            "The head was fitted to its optimum, without epochs; its L2 strength is the best one on validation images."
        )
        return [
            Section(
                "How the head was chosen",
                note,
                [html_table(["C (a larger one is weaker)", f"{named}, %"], rows, strong=best)],
            )
        ]
    epochs = chosen.get("epochs")
    if not epochs:
        return []
    numbers = [row["epoch"] for row in epochs]
    losses = [
        Curve(name, numbers, [row[key] for row in epochs], dots=len(epochs) <= 40)
        for name, key in (("training images, augmented", "loss"), ("validation images", "validation_loss"))
    ]
    measured = Curve(named, numbers, [100 * row[column] for row in epochs], dots=len(epochs) <= 40)
    charts = [
        line_chart(losses, x_label="epoch", y_label="loss", alt="Loss by epoch"),
        line_chart([measured], x_label="epoch", y_label=f"{named}, %", alt=f"{named} by epoch"),
    ]
    note = (
        f"The weights of epoch {chosen['epoch']} of {len(epochs)} are the model: its {named} was the highest, "
        f"{100 * chosen[column]:.1f} %. Test images were used once, at the end."
    )
    return [Section("Learning curve", note, [side_by_side(charts)])]


def _classes(found: ModelNumbers) -> list[Section]:
    metrics, counts = found.metrics, found.confusion
    if found.measure == "mean_average_precision":
        header = ["class", "test images", "average precision, %", "F1, %"]
        rows = [
            [
                name,
                f"{metrics.get('images_with', {}).get(name, 0):.0f}",
                f"{100 * value:.1f}",
                f"{100 * metrics['f1'][name]:.1f}",
            ]
            for name, value in metrics["average_precision"].items()
        ]
        order = np.argsort([metrics["average_precision"][row[0]] for row in rows], kind="stable")
        note = "F1 is of the classes with a probability of at least one half."
    elif found.measure == "mean_iou":
        header, rows = ["class", "IoU, %"], [[name, f"{100 * value:.1f}"] for name, value in metrics["iou"].items()]
        if counts is not None:
            header += ["share of the pixels, %", "most often taken for"]
            rows = [[*row, *_pixels(counts, found.names, row[0])] for row in rows]
        order = np.argsort([metrics["iou"][row[0]] for row in rows], kind="stable")
        note = "Intersection over union of each class, over the pixels of all test images."
    elif counts is None:
        header, rows = (
            ["class", "recall, %"],
            [[name, f"{100 * value:.1f}"] for name, value in metrics["recall"].items()],
        )
        order = np.argsort([metrics["recall"][row[0]] for row in rows], kind="stable")
        note = ""
    else:
        header = ["class", "test images", "recall, %", "precision, %", "most often taken for"]
        present = [place for place in range(len(counts)) if counts[place].sum()]
        rows = [_counted(counts, found.names, place) for place in present]
        order = np.argsort([counts[place, place] / counts[place].sum() for place in present], kind="stable")
        note = "Recall is the share of a class's images that were named right, with its 95 % interval; precision the "
        note += "share of the images given its name that are of it."
    if len(rows) > CLASSES_SHOWN:
        note = f"The {CLASSES_SHOWN} weakest of {len(rows)} classes. {note}"
    return [
        Section("Classes, weakest first", note, [html_table(header, [rows[place] for place in order[:CLASSES_SHOWN]])])
    ]


def _counted(counts: np.ndarray, names: Sequence[str], place: int) -> list[str]:
    total, right, given = int(counts[place].sum()), int(counts[place, place]), int(counts[:, place].sum())
    recall = accuracy_interval(torch.arange(total) < right)
    precision = f"{100 * right / given:.1f}" if given else "–"
    return [names[place], f"{total:,}", interval_of(recall._asdict()), precision, _taken_for(counts, names, place)]


def _taken_for(counts: np.ndarray, names: Sequence[str], place: int) -> str:
    others = counts[place].copy()
    others[place] = 0
    most = int(others.argmax())
    return f"{names[most]} ({100 * others[most] / counts[place].sum():.0f} %)" if others[most] else "–"


def _pixels(counts: np.ndarray, names: Sequence[str], name: str) -> list[str]:
    place = list(names).index(name)
    return [f"{100 * counts[place].sum() / counts.sum():.1f}", _taken_for(counts, names, place)]


def _matrix(found: ModelNumbers) -> list[Section]:
    counts, picture = found.confusion, found.folder / "confusion.png"
    note = "A row for each true class, a column for each predicted one; colors are shares of the true class."
    if counts is not None and len(counts) <= MATRIX_UP_TO:
        unit = " Numbers are shares in %." if found.measure == "mean_iou" else " Numbers are test images."
        return [
            Section(
                "Confusion matrix",
                note + unit,
                [matrix_table(found.names, counts, percent=bool(found.measure == "mean_iou"))],
            )
        ]
    return [Section("Confusion matrix", note, [embedded(picture, "confusion matrix")])] if picture.exists() else []


def _mistakes(found: ModelNumbers) -> list[Section]:
    picture = found.folder / "worst-mistakes.png"
    if not picture.exists():
        return []
    note = {
        "accuracy": "Test images whose true class got the lowest probability, with the class that was predicted.",
        "mean_average_precision": "Test images with the largest loss: their classes, and what was predicted.",
        "mean_iou": "Test images with the fewest pixels right: what was predicted, next to the mask.",
    }[found.measure]
    return [Section("Worst mistakes", note, [embedded(picture, "worst mistakes")])]


def _use(found: ModelNumbers) -> Section:
    folder = shlex.quote(str(found.folder))
    out = "masks" if found.measure == "mean_iou" else "predictions.csv"
    lines = [f"patchcast predict {folder} IMAGES --out {out}", f"patchcast export {folder} --out served --to onnx"]
    lines += [found.metrics["command"]] if "command" in found.metrics else []
    return Section("How to use it, and to train it again", "", [commands(lines)])
