"""How fast a run is, what it waits for, how much memory it takes, and one line that says so."""

from __future__ import annotations

import sys
import time
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 1.0
"""Shortest time over which a rate is measured, unless an evaluation comes before."""
VISIBLE = 0.1
"""Share of time waiting for data from which on the line shows it: faster loading would then be felt."""


@runtime_checkable
class Waits(Protocol):
    """What batches come from."""

    batch_size: int
    waited: float
    """Seconds that the process has waited for batches so far."""


class Throughput:
    """Measures images a second and the share of time in which the process waited for data.

    Both are over the last second or more of training: evaluations and checkpoints do not count. On a GPU the share is
    an upper bound: queued work may still run while the process waits. The clock is read where the loss has been read,
    so that the work of the steps is done.

    Args:
        stream: the batches.
    """

    def __init__(self, stream: Waits) -> None:
        self.stream = stream
        self.rate, self.waiting = 0.0, 0.0
        self.begun: tuple[float, float, int] | None = None

    def begin(self, step: int) -> None:
        """Start the clock, unless it runs, when the first batch of the next step is there."""
        if self.begun is None:
            self.begun = time.perf_counter(), self.stream.waited, step

    def measure(self, step: int, *, pauses: bool) -> None:
        """After a step; `pauses` stops the clock until the next one begins, because something else comes between."""
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
        """For a row of the log, once there is a rate."""
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
        title: what is being trained.
        throughput: knows how fast.
        steps: of the whole run.
        first: the step at which this process begins.
        is_shown: False for all ranks but the first.
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
        """Whether a plain line may come at this step; on all ranks alike, so that all read their losses for it."""
        return step % max(1, self.steps // 10) == 0

    def show(self, step: int, loss: float | None) -> None:
        """After a step; a loss of None has not been read, and the one before stays."""
        self.loss = self.loss if loss is None else loss
        self.bar.update(self.task, completed=step, loss=self.loss, speed=str(self.throughput))
        if self.is_shown and self.bar.disable and self.is_due(step):
            left = (time.perf_counter() - self.started) / (step - self.first) * (self.steps - step)
            self.console.print(
                f"{self.title}: step {step:,} of {self.steps:,}, loss {self.loss:.4f}, {self.throughput}, "
                f"{left:.0f} s left"
            )
