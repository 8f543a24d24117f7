"""`metrics.csv`: one row for every logged step. TensorBoard and Weights & Biases get the same, where asked for."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

SECONDS_BETWEEN_WRITES = 5.0
COLUMNS = [
    "step", "loss", "eval_loss", "lr", "knn_accuracy", "linear_accuracy", "feature_variance", "feature_rank",
    "images_per_second", "data_wait", "peak_memory_mb",
]  # fmt: skip

AVERAGE = "ema_eval_loss"
"""Column of runs that average their weights: the evaluation loss with these."""
OBJECTIVE = "loss_"
"""Columns of a method with several objectives begin so: `loss_pixels`."""

Entries = Mapping[str, float | Image.Image]
"""Numbers by the names of columns, and pictures, which a CSV file has no place for."""


@runtime_checkable
class Logger(Protocol):
    """Where a run's numbers and pictures go, apart from `metrics.csv`."""

    def log(self, step: int, found: Entries) -> None: ...

    def close(self) -> None: ...


class Log:
    """Writes what is found to `metrics.csv` and hands it on to other loggers.

    A step is the number of optimizer steps that have been done, as in the names of checkpoints and pictures.

    Args:
        is_written: False for all ranks but the first, which log nothing.
    """

    def __init__(self, file: Path, loggers: Sequence[Logger] = (), *, is_written: bool = True) -> None:
        self.file, self.loggers, self.is_written = file, loggers, is_written
        self.rows: dict[int, dict[str, Any]] = {}
        self.written = time.monotonic()

    def resume(self, step: int, *, counted_from_zero: bool = False) -> None:
        """Take over the rows of an earlier process up to this step, and drop those after it, which will come again.

        Args:
            counted_from_zero: the rows were written by a version that called the first step 0.
        """
        if self.file.exists():
            rows = {int(row["step"]) + counted_from_zero: dict(row) for row in read_metrics(self.file)}
            self.rows = {at: {**row, "step": at} for at, row in rows.items() if at <= step}

    def add(self, step: int, found: Entries) -> None:
        if not (self.is_written and found):
            return
        known = {name: value for name, value in found.items() if name in COLUMNS or _is_extra(name)}
        if known:
            self.rows.setdefault(step, {"step": step}).update(known)
        for logger in self.loggers:
            logger.log(step, found)
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write all rows to a new file and rename it, so that a process killed at any moment leaves a whole one."""
        if not self.is_written:
            return
        self.written = time.monotonic()
        partial = self.file.with_suffix(".partial")
        with partial.open("w", newline="") as out:
            parts = dict.fromkeys(name for row in self.rows.values() for name in row if _is_extra(name))
            writer = csv.DictWriter(out, [*COLUMNS, *parts], restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.file)


def _is_extra(name: str) -> bool:
    """Whether a column stands only in the files of runs that have it."""
    return name == AVERAGE or name.startswith(OBJECTIVE)


def read_metrics(file: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv`, as text; a file that is damaged has the rows that can be read."""
    text = file.read_bytes().replace(b"\0", b"").decode("utf-8", errors="replace")
    return [row for row in csv.DictReader(text.splitlines()) if (row.get("step") or "").isdecimal()]


def curve(file: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values at which a metric was logged."""
    rows = [row for row in read_metrics(file) if row.get(metric)]
    return [int(row["step"]) for row in rows], [float(row[metric]) for row in rows]


class TensorBoard:
    """Into the folder `tensorboard` of the run's."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def log(self, step: int, found: Entries) -> None:
        import numpy as np

        for name, value in found.items():
            if isinstance(value, Image.Image):
                self.writer.add_image(name, np.asarray(value.convert("RGB")), step, dataformats="HWC")
            else:
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Into a project of Weights & Biases. A run that resumes is the same run there, by the folder it has left here.

    wandb's own environment variables apply: `WANDB_MODE=offline`, `WANDB_ENTITY`, ...

    Raises:
        ValueError: if a run cannot be opened there.
    """

    def __init__(self, project: str, out: Path, config: dict[str, Any]) -> None:
        import wandb

        earlier = sorted(out.glob("wandb/*run-*-*"))
        number = earlier[-1].name.rpartition("-")[2] if earlier else None
        try:
            self.run = wandb.init(
                project=project, name=out.name, dir=str(out), id=number, resume="allow", config=config
            )
        except wandb.errors.Error as problem:
            first = str(problem).partition("\n")[0]
            raise ValueError(f"--wandb {project}: {first} Without a network, set WANDB_MODE=offline.") from problem
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log(self, step: int, found: Entries) -> None:
        import wandb

        shown = {name: wandb.Image(each) if isinstance(each, Image.Image) else each for name, each in found.items()}
        self.run.log({**shown, "trainer/global_step": step})

    def close(self) -> None:
        self.run.finish()


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[Sequence[Logger]]:
    """Close runs that would otherwise be open until the process ends, and take the rows of its next run."""
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def check_installed(package: str) -> None:
    """Refuse at the beginning what would fail after the first steps.

    >>> check_installed("tensorboarding")
    Traceback (most recent call last):
    ValueError: --tensorboarding needs a package that is not here: pip install 'patchcast[tensorboarding]'
    """
    if find_spec(package) is None:
        raise ValueError(f"--{package} needs a package that is not here: pip install 'patchcast[{package}]'")
