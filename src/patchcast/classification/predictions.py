"""Predicted classes as rows, and tables of them as CSV and parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchcast.classification.label_predictor import LabelPredictor
from patchcast.data import Images
from patchcast.data.columns import SEPARATOR
from patchcast.data.images import Unreadable

LABELS = "labels"
"""Column of all classes of at least one half, where an image may have several."""
Prediction = dict[str, Any]


def predicted_rows(
    predictor: LabelPredictor, images: Images, places: Sequence[int], top: int, batch_size: int
) -> list[Prediction]:
    """A row for each image that can be read: its path, and the likeliest classes with their probabilities."""
    device = next(predictor.module.parameters()).device
    rows: list[Prediction] = []
    for batch in _batches(predictor, images, places, batch_size):
        of_all = predictor.compute(torch.stack([image for _, image in batch]).to(device)).cpu()
        shares, classes = of_all.topk(top, dim=1)
        for (path, _), share, order, whole in zip(batch, shares.tolist(), classes.tolist(), of_all, strict=True):
            values = [value for pair in zip([predictor.names[i] for i in order], share, strict=True) for value in pair]
            row = dict(zip(prediction_columns(top), [path, *values], strict=True))
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


def prediction_columns(top: int) -> list[str]:
    """Names of the columns of a table of predictions.

    >>> prediction_columns(2)
    ['path', 'label', 'probability', 'label_2', 'probability_2']
    """
    more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    return ["path", "label", "probability", *more]


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
