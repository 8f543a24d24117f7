"""One line that says how far the run is: the loss, images a second, and the time left."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patchcast.training.throughput import Throughput

VISIBLE = 0.1
"""Share of time waiting for data from which on the line tells it: faster loading would then be felt."""


class ProgressLine(L.Callback):
    """A progress bar in a terminal; elsewhere (a log file) a plain line at every tenth of the run.

    Args:
        title: what is being trained.
        throughput: knows how fast.
    """

    def __init__(self, title: str, throughput: Throughput) -> None:
        self.title, self.throughput = title, throughput
        self.console = Console()
        self.loss = float("nan")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.steps, self.done = trainer.max_steps, trainer.global_step
        self.started, self.first = time.perf_counter(), self.done
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal or not trainer.is_global_zero,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, completed=self.done, loss=self.loss, speed="")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self.done:  # gradients are still being gathered
            return
        self.done = trainer.global_step
        logged = trainer.callback_metrics.get("loss")
        if logged is not None:
            self.loss = float(logged)
        self.bar.update(self.task, completed=self.done, loss=self.loss, speed=self.speed)
        if self.bar.disable and trainer.is_global_zero and self.done % max(1, self.steps // 10) == 0:
            passed = time.perf_counter() - self.started
            left = passed / (self.done - self.first) * (self.steps - self.done)
            self.console.print(
                f"{self.title}: step {self.done:,} of {self.steps:,}, loss {self.loss:.4f}, "
                f"{self.speed}, {left:.0f} s left"
            )

    @property
    def speed(self) -> str:
        """In words; where the run waits for data, how much of its time."""
        rate, waiting = self.throughput.rate, self.throughput.waiting
        return f"{rate:,.0f} images/s" + (f", {waiting:.0%} of the time waiting for data" if waiting >= VISIBLE else "")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
