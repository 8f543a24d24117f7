"""`patchcast probe --dense`: classify single units, on images with a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch.utils.data import DataLoader, Subset

from patchcast import options
from patchcast.data.masks import Collages, open_masked
from patchcast.evaluation.baselines import PIXELS
from patchcast.evaluation.dense import DenseResult, dense_probe, raw_units
from patchcast.evaluation.labeled import Prepared
from patchcast.evaluation.protocol import Protocol, Request, Subject, new_table, percent

COLLAGE_BATCH = 64
TRAINING, JUDGING = 1000, 300
"""Numbers of collages for training and for testing."""


class DenseProtocol(Protocol[DenseResult]):
    """The class of every pixel from the feature of its unit, on masks (or boxes) or on collages."""

    file = "dense"

    def __init__(self, options: options.DenseOptions, request: Request, subject: Subject) -> None:
        self.kind, self.request = options.dense, request
        if self.kind == "masks" and request.is_own:
            raise ValueError("--dense masks needs --data, a folder with 'images' and 'masks' (or 'boxes.json') in it")
        # Collages are made of all training images; the limit is on the number of collages.
        self.labeled = replace(request, limit=None).labeled() if self.kind == "collages" else None
        *_, self.description = self._open(subject)

    def _open(self, subject: Subject) -> tuple[DataLoader[Any], DataLoader[Any], str]:
        """Training batches, test batches, and a description of both."""
        fit: Any
        judge: Any
        if self.labeled is None:
            fit, judge = (
                open_masked(
                    Path(self.request.data),
                    split=split,
                    channels=subject.backbone.channels,
                    transform=subject.evaluate,
                    size=subject.size,
                    squash=subject.evaluate.squash,
                )
                for split in ("train", "test")
            )
            kind = "masks" if fit.files[0][1] is not None else "boxes"
            description = f"{self.request.data}, by {kind}"
            fit = Subset(fit, range(min(self.request.limit or len(fit), len(fit))))
        else:
            fit = Collages(
                Prepared(self.labeled.train, subject.evaluate), min(self.request.limit or TRAINING, TRAINING)
            )
            judge = Collages(Prepared(self.labeled.test, subject.evaluate), JUDGING, seed=1)
            description = f"collages of {self.labeled.description}"
        description += f": {len(fit):,} for training, {len(judge):,} for testing"
        return DataLoader(fit, batch_size=COLLAGE_BATCH), DataLoader(judge, batch_size=COLLAGE_BATCH), description

    def measure(self, subject: Subject) -> DenseResult:
        fit, judge, _ = self._open(subject)
        return dense_probe(subject.backbone, fit, judge, device=self.request.device)

    def baselines(self, subject: Subject) -> Iterator[tuple[str, Callable[[], DenseResult]]]:
        fit, judge, _ = self._open(subject)
        pixels = raw_units(subject.backbone.grid(subject.size))
        yield PIXELS, lambda: dense_probe(pixels, fit, judge, device=self.request.device)

    def tables(self, results: Mapping[str, DenseResult]) -> list[Table]:
        columns = ("linear: IoU", "pixels", "kNN: IoU", "pixels")
        table = new_table(self.description, "features of units", *columns, title="Every pixel's class, in %,")
        for name, result in results.items():
            linear, knn = result.linear, result.knn
            pixels = [f"{100 * dense.pixel_accuracy.value:.1f}" for dense in (linear, knn)]
            table.add_row(name, percent(linear.mean_iou), pixels[0], percent(knn.mean_iou), pixels[1])
        table.caption = (
            "Mean intersection over union, with its 95 % interval over the test images; share of pixels that are "
            "right. Each unit is classified from its own feature only."
        )
        return [table]

    def record(self, results: Mapping[str, DenseResult]) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for name, result in results.items():
            both = {"linear": result.linear, "knn": result.knn}
            rows[name] = {
                probe: {"mean_iou": dense.mean_iou._asdict(), "pixel_accuracy": dense.pixel_accuracy._asdict()}
                for probe, dense in both.items()
            }
            rows[name]["linear"]["strength"] = result.strength
        return {"kind": self.kind, **rows}
