"""Speed, data wait and peak memory of a run, and the progress line that shows them."""

from __future__ import annotations

import sys
import time
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 1.0
"""Minimum seconds over which a rate is measured, unless an evaluation comes earlier."""
VISIBLE = 0.1
"""The progress line shows the share of time spent waiting for data from this value on."""


@runtime_checkable
class Waits(Protocol):
    """A source of batches."""

    batch_size: int
    waited: float
    """Seconds that the process has waited for batches so far."""


class Throughput:
    """Measures images per second and the share of time spent waiting for data.

    Both are over the last second or more of training, without evaluations and checkpoints. On a GPU the share is an
    upper bound, because queued work may still run while the process waits. The clock is read after the loss has been
    read, when the work of the steps is done.

    Args:
        stream: the batches.
    """

    def __init__(self, stream: Waits) -> None:
        self.stream = stream
        self.rate, self.waiting = 0.0, 0.0
        self.begun: tuple[float, float, int] | None = None

    def begin(self, step: int) -> None:
        """Start the clock, unless it is running, once the first batch of a step has arrived."""
        if self.begun is None:
            self.begun = time.perf_counter(), self.stream.waited, step

    def measure(self, step: int, *, pauses: bool) -> None:
        """Call after a step; `pauses` stops the clock until the next step, for an evaluation or a checkpoint."""
        assert self.begun is not None
        since, waited, first = self.begun
        passed = time.perf_counter() - since
        if passed >= SECONDS or (pauses and passed > 0):
            self.rate = (step - first) * self.stream.batch_size / passed
            self.waiting = (self.stream.waited - waited) / passed
            self.begun = time.perf_counter(), self.stream.waited, step
        if pauses:
            self.begun = None

    def found(self, device: torch.device) -> dict[str, float]:
        """Values for a row of the log; empty until a rate has been measured."""
        if not self.rate:
            return {}
        return {
            "images_per_second": self.rate, "data_wait": self.waiting, "peak_memory_mb": peak_memory(device)
        }  # fmt: skip

    def __str__(self) -> str:
        waiting = f", {self.waiting:.0%} of the time waiting for data" if self.waiting >= VISIBLE else ""
        return f"{self.rate:,.0f} images/s{waiting}"


def peak_memory(device: torch.device) -> float:
    """The most that this process has held so far, in MiB: of the GPU's memory by tensors; else of main memory, at all.

    >>> peak_memory(torch.device("cpu")) > 1
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")  # its standard library does not know
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class ProgressLine:
    """A progress bar in a terminal; elsewhere (a log file) a plain line at every tenth of the run.

    Args:
        title: shown at the beginning of the line.
        throughput: measures the speed.
        steps: steps of the whole run.
        first: the step at which this process begins.
        is_shown: False on all ranks except the first.
    """

    def __init__(self, title: str, throughput: Throughput, *, steps: int, first: int, is_shown: bool = True) -> None:
        self.title, self.throughput, self.steps, self.first = title, throughput, steps, first
        self.is_shown, self.loss = is_shown, float("nan")
        self.console = Console()
        self.started = time.perf_counter()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal or not is_shown,
        )

    def __enter__(self) -> ProgressLine:
        if self.is_shown and self.first:
            self.console.print(f"Resuming at step {self.first:,} of {self.steps:,}.")
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, completed=self.first, loss=self.loss, speed="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def is_due(self, step: int) -> bool:
        """Whether a line may be printed at this step; the same on all ranks, because all must read their losses."""
        return step % max(1, self.steps // 10) == 0

    def show(self, step: int, loss: float | None) -> None:
        """Call after a step; with loss None, which means not read, the previous loss stays."""
        self.loss = self.loss if loss is None else loss
        self.bar.update(self.task, completed=step, loss=self.loss, speed=str(self.throughput))
        if self.is_shown and self.bar.disable and self.is_due(step):
            left = (time.perf_counter() - self.started) / (step - self.first) * (self.steps - step)
            self.console.print(
                f"{self.title}: step {step:,} of {self.steps:,}, loss {self.loss:.4f}, {self.throughput}, "
                f"{left:.0f} s left"
            )
