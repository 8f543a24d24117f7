"""`patchcast predict`: the classes of images with their probabilities, to parquet or CSV; stopped, it goes on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from patchcast import options
from patchcast.classification.classifier_folder import is_fine_tuned, open_classifier
from patchcast.commands.parts import IMAGES_PER_PART, claim_parts
from patchcast.commands.predict_masks import predict_masks
from patchcast.data import EvalLoader, EvalSet, Evaluate, Images, open_source
from patchcast.data.columns import SEPARATOR
from patchcast.data.images import Unreadable
from patchcast.data.listed import open_listed
from patchcast.data.names import escape
from patchcast.evaluation.features import extract, fingerprint
from patchcast.evaluation.knn import TEMPERATURE
from patchcast.evaluation.labeled import paths_of
from patchcast.files import read_json, write_text, write_whole
from patchcast.modes import evaluating
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.network import open_network, torch_device
from patchcast.runs.subjects import feature_cache
from patchcast.segmentation.segmenter_folder import is_segmenter

SHOWN = 50
"""Rows of the table that is printed without --out."""
LABELS = "labels"
"""Column of all classes of at least one half, where an image may have several."""
Prediction = dict[str, Any]


@dataclass(frozen=True)
class LabelPredictor:
    """From images to the probability of each class.

    Attributes:
        module: on whose device the images have to be.
        how: in words, for people.
        depends_on: all that the probabilities depend on besides the images.
        is_multi_label: an image may be of any number of classes; those of at least one half are its labels.
    """

    module: nn.Module
    names: list[str]
    evaluate: Evaluate
    channels: int
    compute: Callable[[Tensor], Tensor]
    how: str
    depends_on: str
    is_multi_label: bool = False


def predict(given: options.Predict) -> None:
    """Write, or print, the likeliest classes of every image that can be read.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
    """
    ranges = dict.fromkeys(("neighbors", "top", "batch_size"), AT_LEAST_1)
    check_ranges({name: getattr(given, name) for name in ranges}, ranges, prefix="--")
    if is_segmenter(given.model):
        predict_masks(given, torch_device(given.device))
        return
    if given.out is not None and given.out.suffix not in PREDICTION_WRITERS:
        raise ValueError(f"--out must end in {' or '.join(PREDICTION_WRITERS)}; got {given.out}")
    if given.out is not None and given.out.exists():
        raise ValueError(f"{given.out} is there already; choose another --out, or delete it to write it again")
    device = torch_device(given.device)
    predictor = _classifier(given, device) if is_fine_tuned(given.model) else _voters(given, device)
    sources = open_listed(given.images, channels=predictor.channels, split=given.split)
    count = sum(len(images) for images in sources)
    top = min(given.top, len(predictor.names))
    console = Console(highlight=False)
    console.print(f"{count:,} images: {escape(predictor.how)}")
    work = [
        (number, start) for number, images in enumerate(sources) for start in range(0, len(images), IMAGES_PER_PART)
    ]

    def part(number: int, start: int) -> list[Prediction]:
        images = sources[number]
        return _rows(predictor, images, range(start, min(start + IMAGES_PER_PART, len(images))), top, given.batch_size)

    with evaluating(predictor.module):
        if given.out is None:
            rows: list[Prediction] = []
            for number, start in work:
                if len(rows) < SHOWN:
                    rows += part(number, start)
            console.print(_table(rows[:SHOWN], top))
            if count > len(rows[:SHOWN]):
                console.print(f"{len(rows[:SHOWN])} of {count:,} images are shown; --out FILE.csv writes all.")
            _name_unreadable(console, [bad for images in sources for bad in images.unreadable])
            return
        parts = given.out.with_name(given.out.name + ".parts")
        plan = {
            "model": predictor.depends_on,
            "images": fingerprint([path for images in sources for path in paths_of(images)]),
            "top": top,
            "images_per_part": IMAGES_PER_PART,
        }
        done = claim_parts(parts, given.out, plan, ".rows.json", "predictions")
        if done:
            console.print(f"Resuming after {done} parts of up to {IMAGES_PER_PART} images.")
        todo = list(enumerate(work))[done:]
        for place, (number, start) in track(
            todo, description="predicting", console=console, disable=not console.is_terminal
        ):
            found = part(number, start)
            bad = [[image.path, image.reason] for image in sources[number].unreadable]
            write_text(parts / f"{place:08d}.rows.json", json.dumps({"rows": found, "unreadable": bad}))
    files = sorted(parts.glob("[0-9]*.rows.json"))
    contents = [read_json(file) for file in files]
    written = sum(len(content["rows"]) for content in contents)
    if not written:
        raise ValueError(f"none of the {count:,} images can be read")
    out, columns = given.out, [*_columns(top), *([LABELS] if predictor.is_multi_label else [])]
    write_whole(
        out, lambda file: PREDICTION_WRITERS[out.suffix]([content["rows"] for content in contents], columns, file)
    )
    shutil.rmtree(parts)
    console.print(f"Wrote {escape(out)}: {written:,} rows.")
    reasons = {path: reason for content in contents for path, reason in content["unreadable"]}
    reasons |= {image.path: image.reason for images in sources for image in images.unreadable}
    _name_unreadable(console, [Unreadable(0, path, reason) for path, reason in reasons.items()])


def _classifier(given: options.Predict, device: str) -> LabelPredictor:
    if given.data is not None:
        raise ValueError(f"{given.model} has a classifier of its own; leave --data out, or give a run")
    tuned = open_classifier(given.model)
    model = tuned.model.to(device)
    how = f"{len(tuned.names)} classes of {given.model}"
    return LabelPredictor(
        model,
        tuned.names,
        tuned.evaluate,
        tuned.channels,
        lambda images: tuned.probabilities(model(images)),
        how,
        fingerprint(model),
        tuned.is_multi_label,
    )


def _voters(given: options.Predict, device: str) -> LabelPredictor:
    """Labeled images vote by the similarity of their features, as in the kNN probe."""
    if given.data is None:
        raise ValueError(
            f"{given.model} has no classifier: give --data LABELED, whose nearest images vote, or fine-tune it with "
            f"patchcast finetune {given.model} --data LABELED --out models/x"
        )
    network = open_network(given.model)
    backbone, evaluate = network.backbone, network.evaluate
    labeled = open_source(given.data, channels=backbone.channels).labeled_split("train")
    if labeled is None:
        raise ValueError(f"{given.data} has no labels, which are to vote")
    features = extract(
        backbone, EvalLoader(EvalSet(labeled, evaluate), given.batch_size), device=device, cache=feature_cache()
    )
    reference, labels = F.normalize(features.x, dim=1).to(device), features.labels.to(device)
    names = labeled.class_names or [str(label) for label in range(int(labels.max()) + 1)]
    neighbors = min(given.neighbors, len(labels))

    def vote(images: Tensor) -> Tensor:
        near = F.normalize(backbone.pool(images).float(), dim=1) @ reference.T
        similarity, index = near.topk(neighbors, dim=1)
        weights = (similarity.double() / TEMPERATURE).softmax(dim=1)
        return weights.new_zeros(len(images), len(names)).scatter_add_(1, labels[index], weights)

    how = f"votes of the {neighbors} nearest of {len(labels):,} labeled images of {given.data}"
    depends_on = fingerprint([fingerprint(backbone), *paths_of(labeled), *map(str, labels.tolist()), str(neighbors)])
    return LabelPredictor(backbone, names, evaluate, backbone.channels, vote, how, depends_on)


def _rows(
    predictor: LabelPredictor, images: Images, places: Sequence[int], top: int, batch_size: int
) -> list[Prediction]:
    device = next(predictor.module.parameters()).device
    rows: list[Prediction] = []
    for batch in _batches(predictor, images, places, batch_size):
        of_all = predictor.compute(torch.stack([image for _, image in batch]).to(device)).cpu()
        shares, classes = of_all.topk(top, dim=1)
        for (path, _), share, order, whole in zip(batch, shares.tolist(), classes.tolist(), of_all, strict=True):
            values = [value for pair in zip([predictor.names[i] for i in order], share, strict=True) for value in pair]
            row = dict(zip(_columns(top), [path, *values], strict=True))
            if predictor.is_multi_label:
                row[LABELS] = SEPARATOR.join(predictor.names[place] for place in (whole >= 0.5).nonzero().flatten())
            rows.append(row)
    return rows


def _batches(
    predictor: LabelPredictor, images: Images, places: Sequence[int], batch_size: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """Names and prepared images of those that can be read."""
    batch: list[tuple[str, Tensor]] = []
    for place in places:
        example = images.attempt(place)
        if not isinstance(example, Unreadable):
            batch.append((images.store.path(int(images.positions[place])), predictor.evaluate(example.image)))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _columns(top: int) -> list[str]:
    more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    return ["path", "label", "probability", *more]


def _table(rows: list[Prediction], top: int) -> Table:
    table = Table("path", "probability", box=SIMPLE_HEAD)
    table.columns[0].overflow, table.columns[1].no_wrap = "fold", True
    for row in rows:
        values = [row[name] for name in _columns(top)[1:]]
        table.add_row(
            row["path"], ", ".join(f"{name} {share:.3f}" for name, share in zip(values[::2], values[1::2], strict=True))
        )
    return table


def _name_unreadable(console: Console, bad: Sequence[Unreadable]) -> None:
    if bad:
        console.print(f"{len(bad):,} image{'s' * (len(bad) != 1)} could not be read:")
    for image in bad:
        console.print(f"  {image.path}: {image.reason}", markup=False)


def _write_csv(parts: list[list[Prediction]], columns: list[str], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        for rows in parts:
            writer.writerows(
                {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                for row in rows
            )


def _write_parquet(parts: list[list[Prediction]], columns: list[str], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [(name, pa.float64() if name.startswith("probability") else pa.string()) for name in columns]
    pq.write_table(pa.Table.from_pylist([row for rows in parts for row in rows], pa.schema(kinds)), file)


PREDICTION_WRITERS: dict[str, Callable[[list[list[Prediction]], list[str], Path], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
