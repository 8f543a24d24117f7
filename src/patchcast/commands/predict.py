"""`patchcast predict`: the classes of images with their probabilities, to parquet or CSV; stopped, it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from patchcast import options
from patchcast.classification.classifier_folder import is_fine_tuned
from patchcast.classification.label_predictor import LabelPredictor, classifier_predictor, voting_predictor
from patchcast.classification.predictions import (
    LABELS,
    PREDICTION_WRITERS,
    Prediction,
    predicted_rows,
    prediction_columns,
)
from patchcast.commands.predict_masks import predict_masks
from patchcast.data.images import Unreadable
from patchcast.data.listed import open_listed
from patchcast.data.names import escape
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.labeled import paths_of
from patchcast.files import read_json, write_text, write_whole
from patchcast.modes import evaluating
from patchcast.parts import IMAGES_PER_PART, claim_parts
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.network import torch_device
from patchcast.segmentation.segmenter_folder import is_segmenter

SHOWN = 50
"""Rows of the table that is printed without --out."""


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
    predictor = _predictor(given, device)
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
        return predicted_rows(
            predictor, images, range(start, min(start + IMAGES_PER_PART, len(images))), top, given.batch_size
        )

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
    out, columns = given.out, [*prediction_columns(top), *([LABELS] if predictor.is_multi_label else [])]
    write_whole(
        out, lambda file: PREDICTION_WRITERS[out.suffix]([content["rows"] for content in contents], columns, file)
    )
    shutil.rmtree(parts)
    console.print(f"Wrote {escape(out)}: {written:,} rows.")
    reasons = {path: reason for content in contents for path, reason in content["unreadable"]}
    reasons |= {image.path: image.reason for images in sources for image in images.unreadable}
    _name_unreadable(console, [Unreadable(0, path, reason) for path, reason in reasons.items()])


def _predictor(given: options.Predict, device: str) -> LabelPredictor:
    if is_fine_tuned(given.model):
        if given.data is not None:
            raise ValueError(f"{given.model} has a classifier of its own; leave --data out, or give a run")
        return classifier_predictor(given.model, device)
    if given.data is None:
        raise ValueError(
            f"{given.model} has no classifier: give --data LABELED, whose nearest images vote, or fine-tune it with "
            f"patchcast finetune {given.model} --data LABELED --out models/x"
        )
    return voting_predictor(given.model, given.data, device, neighbors=given.neighbors, batch_size=given.batch_size)


def _table(rows: list[Prediction], top: int) -> Table:
    table = Table("path", "probability", box=SIMPLE_HEAD)
    table.columns[0].overflow, table.columns[1].no_wrap = "fold", True
    for row in rows:
        values = [row[name] for name in prediction_columns(top)[1:]]
        shares = ", ".join(f"{name} {share:.3f}" for name, share in zip(values[::2], values[1::2], strict=True))
        table.add_row(escape(row["path"]), escape(shares))
    return table


def _name_unreadable(console: Console, bad: Sequence[Unreadable]) -> None:
    if bad:
        console.print(f"{len(bad):,} image{'s' * (len(bad) != 1)} could not be read:")
    for image in bad:
        console.print(f"  {image.path}: {image.reason}", markup=False)
