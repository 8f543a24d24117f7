"""`metrics.csv`: one row for every logged step, that a run which goes on adds to."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

SECONDS_BETWEEN_WRITES = 5.0
COLUMNS = [
    "step", "loss", "eval_loss", "lr", "knn_accuracy", "linear_accuracy", "feature_variance", "feature_rank",
    "images_per_second", "data_wait", "peak_memory_mb",
]  # fmt: skip


class MetricsFile(Logger):
    """Writes the log to a CSV file.

    Lightning's own CSV logger deletes what an earlier process of the same run wrote; this one drops only the rows after
    the step at which the run goes on.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.rows: dict[int, dict[str, Any]] = {}
        self.written = time.monotonic()

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in the run's config.yaml."""

    @rank_zero_only
    def go_on_from(self, step: int) -> None:
        """Take over the rows of an earlier process up to this step."""
        if self.file.exists():
            self.rows = {int(row["step"]): dict(row) for row in read_metrics(self.file) if int(row["step"]) < step}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        known = {name: value for name, value in metrics.items() if name in COLUMNS}
        if known and step is not None:
            self.rows.setdefault(step, {"step": step}).update(known)

    def save(self) -> None:
        """Lightning calls this after every row; the file is written every few seconds."""
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self.write()

    def finalize(self, status: str) -> None:
        self.write()

    @rank_zero_only
    def write(self) -> None:
        self.written = time.monotonic()
        partial = self.file.with_suffix(".partial")
        with partial.open("w", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))
        partial.replace(self.file)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv`, as text."""
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def curve(file: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values at which a metric was logged."""
    rows = [row for row in read_metrics(file) if row.get(metric)]
    return [int(row["step"]) for row in rows], [float(row[metric]) for row in rows]
