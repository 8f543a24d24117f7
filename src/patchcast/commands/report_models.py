"""Pages about what `patchcast finetune` leaves, and about tables of `patchcast compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchcast.commands.report_parts import interval_of, page_footer, percent_of
from patchcast.evaluation.intervals import accuracy_interval
from patchcast.files import read_json
from patchcast.report import Curve, Html, Section, Tile, commands, definitions, html_table, line_chart, page
from patchcast.report.page import matrix_table, side_by_side
from patchcast.report.pictures import embedded
from patchcast.runs.run_folder import CONFIG
from patchcast.training.progress import duration

BEGUN, METRICS = "finetune.json", "metrics.json"
MAIN = {"accuracy": "accuracy", "mean_average_precision": "mean average precision", "mean_iou": "mean IoU"}
"""The measures by which models are chosen and judged: their names in metrics.json, and in words."""
MATRIX_UP_TO = 20
"""Classes up to which the confusion matrix is a table; of more it is the picture of the folder."""
CLASSES_SHOWN = 60


@dataclass(frozen=True)
class ModelNumbers:
    """A fine-tuned model and its results.

    Attributes:
        start: what training started from.
        data: the words of its labeled images.
        metrics: the contents of metrics.json.
    """

    folder: Path
    start: str
    data: str
    metrics: Mapping[str, Any]

    @property
    def measure(self) -> str:
        """The name of the main measure in metrics.json."""
        return next(name for name in MAIN if name in self.metrics)

    @property
    def names(self) -> list[str]:
        """Of the classes, by number."""
        file = "segmenter.json" if self.measure == "mean_iou" else "classes.json"
        listed = read_json(self.folder / file)
        return list(listed) if isinstance(listed, list) else list(listed.get("names", listed.get("classes")))

    @property
    def confusion(self) -> np.ndarray | None:
        """Counts by true and predicted class; None for folders of earlier versions, and for many classes."""
        counts = self.metrics.get("confusion")
        return None if counts is None else np.array(counts)


def is_model(folder: Path) -> bool:
    """Whether `patchcast finetune` made this folder."""
    return (folder / BEGUN).exists() and not (folder / CONFIG).exists()


def read_model(folder: Path) -> ModelNumbers:
    """What is known about a fine-tuned model.

    Raises:
        ValueError: if its training has not finished, or a file is damaged.
    """
    if not (folder / METRICS).exists():
        raise ValueError(f"fine-tuning has not finished in {folder}; the same command resumes it")
    begun = read_json(folder / BEGUN)
    return ModelNumbers(folder, begun["model"], begun["data"], read_json(folder / METRICS))


# ---- one model ------------------------------------------------------------------------------------------------------


def write_model_page(found: ModelNumbers) -> str:
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
    if worst := _by_class(found):
        name, value = min(worst.items(), key=lambda pair: pair[1])
        good += f" The weakest class is {name} ({100 * value:.1f} %)."
    cost = (
        f"{duration(metrics['processor_seconds'])} of processor time, for {metrics['training_images']:,} training "
        f"images; {metrics['validation_images']:,} more chose the weights."
    )
    trained = f"{found.start}: {metrics['how']}."
    return definitions({"What was trained": trained, "How good is it?": good, "What it cost": cost}, name="answers")


def _by_class(found: ModelNumbers) -> dict[str, float]:
    """The measure of each class: recall, average precision or IoU."""
    names = {"accuracy": "recall", "mean_average_precision": "average_precision", "mean_iou": "iou"}
    return dict(found.metrics.get(names[found.measure], {}))


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
        alt = (
            "The head was fitted to its optimum, without epochs; its L2 strength is the best one on validation images."
        )
        return [
            Section(
                "How the head was chosen",
                alt,
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
    alt = (
        f"The weights of epoch {chosen['epoch']} of {len(epochs)} are the model: its {named} was the highest, "
        f"{100 * chosen[column]:.1f} %. Test images were used once, at the end."
    )
    return [Section("Learning curve", alt, [side_by_side(charts)])]


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
        alt = "F1 is of the classes with a probability of at least one half."
    elif found.measure == "mean_iou":
        header, rows = ["class", "IoU, %"], [[name, f"{100 * value:.1f}"] for name, value in metrics["iou"].items()]
        if counts is not None:
            header += ["share of the pixels, %", "most often taken for"]
            rows = [[*row, *_pixels(counts, found.names, row[0])] for row in rows]
        order = np.argsort([metrics["iou"][row[0]] for row in rows], kind="stable")
        alt = "Intersection over union of each class, over the pixels of all test images."
    elif counts is None:
        header, rows = (
            ["class", "recall, %"],
            [[name, f"{100 * value:.1f}"] for name, value in metrics["recall"].items()],
        )
        order = np.argsort([metrics["recall"][row[0]] for row in rows], kind="stable")
        alt = ""
    else:
        header = ["class", "test images", "recall, %", "precision, %", "most often taken for"]
        present = [place for place in range(len(counts)) if counts[place].sum()]
        rows = [_counted(counts, found.names, place) for place in present]
        order = np.argsort([counts[place, place] / counts[place].sum() for place in present], kind="stable")
        alt = "Recall is the share of a class's images that were named right, with its 95 % interval; precision the "
        alt += "share of the images given its name that are of it."
    if len(rows) > CLASSES_SHOWN:
        alt = f"The {CLASSES_SHOWN} weakest of {len(rows)} classes. {alt}"
    return [
        Section("Classes, weakest first", alt, [html_table(header, [rows[place] for place in order[:CLASSES_SHOWN]])])
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
    alt = "A row for each true class, a column for each predicted one; colors are shares of the true class."
    if counts is not None and len(counts) <= MATRIX_UP_TO:
        unit = " Numbers are shares in %." if found.measure == "mean_iou" else " Numbers are test images."
        return [
            Section(
                "Confusion matrix",
                alt + unit,
                [matrix_table(found.names, counts, percent=bool(found.measure == "mean_iou"))],
            )
        ]
    return [Section("Confusion matrix", alt, [embedded(picture, "confusion matrix")])] if picture.exists() else []


def _mistakes(found: ModelNumbers) -> list[Section]:
    picture = found.folder / "worst-mistakes.png"
    if not picture.exists():
        return []
    alt = {
        "accuracy": "Test images whose true class got the lowest probability, with the class that was predicted.",
        "mean_average_precision": "Test images with the largest loss: their classes, and what was predicted.",
        "mean_iou": "Test images with the fewest pixels right: what was predicted, next to the mask.",
    }[found.measure]
    return [Section("Worst mistakes", alt, [embedded(picture, "worst mistakes")])]


def _use(found: ModelNumbers) -> Section:
    folder = shlex.quote(str(found.folder))
    out = "masks" if found.measure == "mean_iou" else "predictions.csv"
    lines = [f"patchcast predict {folder} IMAGES --out {out}", f"patchcast export {folder} --out served --to onnx"]
    lines += [found.metrics["command"]] if "command" in found.metrics else []
    return Section("How to use it, and to train it again", "", [commands(lines)])


# ---- several --------------------------------------------------------------------------------------------------------


def model_sections(models: Sequence[ModelNumbers]) -> list[Section]:
    """What a page that compares fine-tuned models says of them."""
    if not models:
        return []
    header = ["model", "started from", "training images", "measure", "%", "test images", "processor time"]
    rows = [
        [
            one.folder.name,
            Path(one.start).name,
            f"{one.metrics['training_images']:,}",
            MAIN[one.measure],
            interval_of(one.metrics[one.measure]),
            f"{one.metrics['test_images']:,}",
            duration(one.metrics["processor_seconds"]),
        ]
        for one in models
    ]
    data = list(dict.fromkeys(one.metrics["data"] for one in models))
    alt = "95 % intervals over the test images. "
    alt += f"On {data[0]}." if len(data) == 1 else f"On different data: {'; '.join(data)}."
    sections = [Section("Fine-tuned models", alt, [html_table(header, rows)])]
    by_class = [_by_class(one) for one in models]
    if len(models) > 1 and len({(one.measure, *values) for one, values in zip(models, by_class, strict=True)}) == 1:
        lines = [[name, *(f"{100 * values[name]:.1f}" for values in by_class)] for name in by_class[0]]
        table = html_table(["class", *(one.folder.name for one in models)], lines[:CLASSES_SHOWN])
        what = {"accuracy": "Recall", "mean_average_precision": "Average precision", "mean_iou": "IoU"}[
            models[0].measure
        ]
        sections.append(Section("Class by class", f"{what} in %.", [table]))
    return sections


def compared_sections(tables: Sequence[Path]) -> list[Section]:
    """A section for each table of `patchcast compare`.

    Raises:
        ValueError: if a file is no such table.
    """
    return [_compared(file) for file in tables]


def _compared(file: Path) -> Section:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(file).to_pylist()
        few = sorted({int(name[4:]) for name in rows[0] if name.startswith("few_") and name[4:].isdigit()})
        measures = {"linear, all": "linear", "kNN": "knn", "own classifier": "own_classifier"}
        measures |= {f"{count} a class": f"few_{count}" for count in few}
        measures = {name: column for name, column in measures.items() if any(row[column] is not None for row in rows)}
        lines = [[row["network"], *(_measured(row, column) for column in measures.values())] for row in rows]
        data, tested = rows[0]["data"], rows[0]["test_images"]
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as problem:
        raise ValueError(
            f"{file} holds no table of patchcast compare ({type(problem).__name__}: {problem})"
        ) from problem
    alt = f"Accuracy in % with 95 % intervals over {tested:,} test images, on {data}. A linear classifier and nearest "
    alt += "neighbors on frozen features; an own classifier is the one that the network was fine-tuned with."
    return Section(f"Compared: {file.stem}", alt, [html_table(["network", *measures], lines)])


def _measured(row: Mapping[str, Any], column: str) -> str:
    value = {key: row[f"{column}{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return "–" if value["value"] is None else interval_of(value)
