"""`metrics.csv`: one row for every logged step. TensorBoard and Weights & Biases get the same values if requested."""

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
"""Prefix of the columns of a method with several objectives: `loss_pixels`."""

Entries = Mapping[str, float | Image.Image]
"""Numbers by column name, and pictures, which only the loggers get."""


@runtime_checkable
class Logger(Protocol):
    """Another destination for a run's numbers and pictures besides `metrics.csv`."""

    def log(self, step: int, found: Entries) -> None: ...

    def resume(self, step: int) -> None:
        """Forget what an earlier process logged after this step: it will be logged again."""

    def close(self) -> None: ...


class Log:
    """Writes numbers to `metrics.csv` and passes them to the other loggers.

    A step is the number of optimizer steps done, as in the names of checkpoints and pictures.

    Args:
        is_written: False on all ranks except the first; those log nothing.
    """

    def __init__(self, file: Path, loggers: Sequence[Logger] = (), *, is_written: bool = True) -> None:
        self.file, self.loggers, self.is_written = file, loggers, is_written
        self.rows: dict[int, dict[str, Any]] = {}
        self.written = time.monotonic()

    def resume(self, step: int, *, counted_from_zero: bool = False) -> None:
        """Load the rows of an earlier process up to this step; later rows will be logged again.

        Args:
            counted_from_zero: the rows were written by a version that counted the first step as 0.
        """
        for logger in self.loggers if self.is_written else ():
            logger.resume(step)
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
        """Write all rows to a new file and rename it, so that a killed process leaves a complete file."""
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
    """The rows of a `metrics.csv`, as text; of a damaged file, the rows that can be read."""
    text = file.read_bytes().replace(b"\0", b"").decode("utf-8", errors="replace")
    rows = [row for row in csv.DictReader(text.splitlines()) if (row.get("step") or "").isdecimal()]
    return [{name: value if _is_number(value) else "" for name, value in row.items() if name} for row in rows]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def curve(file: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values at which a metric was logged."""
    rows = [row for row in read_metrics(file) if row.get(metric)]
    return [int(row["step"]) for row in rows], [float(row[metric]) for row in rows]


class TensorBoard:
    """Writes to the folder `tensorboard` in the run folder."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = str(out / "tensorboard")
        self.writer = SummaryWriter(self.folder)

    def resume(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer.close()
        self.writer = SummaryWriter(self.folder, purge_step=step + 1)

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
    """Writes to a project of Weights & Biases. A resumed run continues the same W&B run, found by its local folder.

    wandb's environment variables apply: `WANDB_MODE=offline`, `WANDB_ENTITY`, ...

    Raises:
        ValueError: if wandb cannot start the run.
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

    def resume(self, step: int) -> None:
        """Nothing: rows are shown by their step, and those that are logged again are the same."""

    def log(self, step: int, found: Entries) -> None:
        import wandb

        shown = {name: wandb.Image(value) if isinstance(value, Image.Image) else value for name, value in found.items()}
        self.run.log({**shown, "trainer/global_step": step})

    def close(self) -> None:
        self.run.finish()


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[Sequence[Logger]]:
    """Close the loggers at the end of a run, so that the next run of this process does not log to them."""
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def check_installed(package: str) -> None:
    """Check at the beginning that a logger's package is installed.

    >>> check_installed("tensorboarding")
    Traceback (most recent call last):
    ValueError: --tensorboarding needs a package that is not installed: pip install 'patchcast[tensorboarding]'
    """
    if find_spec(package) is None:
        raise ValueError(f"--{package} needs a package that is not installed: pip install 'patchcast[{package}]'")
