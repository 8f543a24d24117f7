"""Speed, data wait and peak memory of a run, and the progress line that shows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from patchcast.stages import stage

SOON, EARLY, MINUTE = 2.0, 4, 60.0
"""Seconds between plain lines at the most: in the first few steps, and after them."""
MEASURED = {
    "eval_loss": ("held-out loss", ".4f"),
    "validation_accuracy": ("validation accuracy", ".1%"),
    "validation_mean_average_precision": ("validation mean average precision", ".1%"),
    "validation_mean_iou": ("validation mean IoU", ".1%"),
    "ema_eval_loss": ("with averaged weights", ".4f"),
    "linear_accuracy": ("linear probe", ".1%"),
    "knn_accuracy": ("nearest neighbors", ".1%"),
}
"""Columns of a run's log that are printed after an evaluation: their words and formats."""
SECONDS = 1.0
"""Minimum seconds over which a rate is measured, unless an evaluation comes earlier."""
VISIBLE = 0.02
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
        self.seconds, self.waited = 0.0, 0.0  # of training so far, and waiting in it
        self.begun: tuple[float, float, int] | None = None
        self.is_first = True

    @property
    def waited_share(self) -> float:
        """The share of all the time so far in which the process waited for data."""
        return self.waited / self.seconds if self.seconds else 0.0

    def resume(self, step: int) -> None:
        """Call before a batch is asked for: starts the clock after an evaluation or a checkpoint."""
        if not self.is_first:
            self.begin(step)

    def begin(self, step: int) -> None:
        """Call when a batch has arrived: starts the clock with the first one, which also starts workers and may decode
        all images."""
        self.is_first = False
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
            self.seconds, self.waited = self.seconds + passed, self.waited + self.stream.waited - waited
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


def duration(seconds: int | float) -> str:
    """Format a time.

    >>> duration(0.34), duration(99.9), duration(150), duration(9000), duration(200_000)
    ('0.3 s', '100 s', '2.5 min', '2.5 h', '2.3 days')
    """
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds / 86_400)} days"


def _two_digits(value: int | float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0")


class ProgressLine:
    """A progress bar in a terminal; elsewhere (a log file) plain lines: at every tenth of the run, and once a minute.

    Speed and time left are there from the second step on: the first takes longer than the others.

    Args:
        title: shown at the beginning of the line.
        throughput: measures the speed.
        steps: steps of the whole run.
        first: the step at which this process begins.
        is_shown: False on all ranks except the first.
        blind: loss of a prediction that ignores the image, to compare the loss with; None if there is none.
    """

    def __init__(
        self,
        title: str,
        throughput: Throughput,
        *,
        steps: int,
        first: int,
        is_shown: bool = True,
        blind: float | None = None,
    ) -> None:
        self.title, self.throughput, self.steps, self.first = title, throughput, steps, first
        self.is_shown, self.blind = is_shown, blind
        self.loss: float | None = None
        self.step = first
        self.console = Console(highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not self.console.is_terminal or not is_shown,
            expand=True,
        )
        self.printed = 0.0
        self.begun: float | None = None  # after the first step of this process

    def __enter__(self) -> ProgressLine:
        if self.is_shown and self.first:
            self.console.print(f"Resuming at step {self.first:,} of {self.steps:,}.")
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, completed=self.first, state="the first step")
        if self.is_shown and self.bar.disable and self.first < self.steps:
            left = self.steps - self.first
            self.console.print(f"{self.title}: {left:,} {'step' if left == 1 else 'steps'} to do.")
        self.printed = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def is_due(self, step: int) -> bool:
        """Whether a line may be printed at this step; the same on all ranks, because all must read their losses."""
        return step % max(1, self.steps // 10) == 0

    def show(self, step: int, loss: float | None) -> None:
        """Call after a step; with loss None, which means not read, the previous loss stays."""
        now = time.perf_counter()
        self.loss, self.step = self.loss if loss is None else loss, step
        self.bar.update(self.task, completed=step, state=self._state(step, now, brief=True))
        waits = SOON if self.begun is not None and step <= self.first + EARLY else MINUTE
        if self.is_shown and self.bar.disable and (self.is_due(step) or now - self.printed > waits):
            said = f"{self.title}: step {step:,} of {self.steps:,}, {self._state(step, now)}"
            self.console.print(said, soft_wrap=True)
            self.printed = now
        if self.begun is None:
            self.begun = now

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the line says that the run is being evaluated."""
        with stage(f"{self.title}: evaluating") if self.bar.disable and self.is_shown else nullcontext():
            self.bar.update(self.task, state="evaluating")
            yield

    def evaluated(self, found: Mapping[str, object]) -> None:
        """Print what an evaluation has measured."""
        values = [(words, form, found[name]) for name, (words, form) in MEASURED.items() if name in found]
        parts = [f"{words} {value:{form}}" for words, form, value in values if isinstance(value, float)]
        if parts and self.is_shown:
            when = f"after step {self.step:,}" if self.step else "before the first step"
            self.bar.console.print(f"{self.title}: {when}, {', '.join(parts)}", soft_wrap=True)

    def _state(self, step: int, now: float, *, brief: bool = False) -> str:
        blind = "" if self.blind is None else f" (blind {self.blind:.2f})"
        loss = [] if self.loss is None else [f"loss {self.loss:.4f}{blind}"]
        rate, waiting = self.throughput.rate, self.throughput.waiting
        speed = [str(self.throughput)] if rate else []
        done = step - self.first - 1  # since the first
        left = []
        if step >= self.steps:
            left = [] if brief else ["done"]
        elif self.begun is not None and done > 0:
            left = [f"{duration((now - self.begun) / done * (self.steps - step))} left"]
        if brief:  # beside a bar; what does not fit into the terminal is cut off at the end
            loss = [] if self.loss is None else [f"loss {self.loss:.3f}{blind}"]
            waits = [f"data {waiting:.0%}"] if waiting >= VISIBLE else []
            return ", ".join([*loss, *left, *([f"{rate:,.0f} images/s"] if rate else []), *waits])
        return ", ".join([*loss, *speed, *left])
