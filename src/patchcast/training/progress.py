"""One line that says how far the run is: the loss, images a second, and the time left."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressLine(L.Callback):
    """A progress bar in a terminal; elsewhere (a log file) a plain line at every tenth of the run.

    It also measures images a second, over the steps since the last entry of the log, and logs it.

    Args:
        title: what is being trained.
        batch_size: images of one optimiser step, over all devices.
    """

    def __init__(self, title: str, batch_size: int) -> None:
        self.title, self.batch_size = title, batch_size
        self.console = Console()
        self.loss = float("nan")
        self.rate = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.steps, self.done = trainer.max_steps, trainer.global_step
        self.since, self.at = time.perf_counter(), self.done
        self.started = self.since
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal or not trainer.is_global_zero,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, completed=self.done, loss=self.loss, rate=self.rate)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self.done:  # gradients are still being gathered
            return
        self.done = trainer.global_step
        logged = trainer.callback_metrics.get("loss")
        if logged is not None:
            self.loss = float(logged)
        now = time.perf_counter()
        if now - self.since > 1.0:
            self.rate = (self.done - self.at) * self.batch_size / (now - self.since)
            self.since, self.at = now, self.done
            module.log("images_per_second", self.rate)
        self.bar.update(self.task, completed=self.done, loss=self.loss, rate=self.rate)
        if self.bar.disable and trainer.is_global_zero and self.done % max(1, self.steps // 10) == 0:
            left = (now - self.started) / max(1, self.done) * (self.steps - self.done)
            self.console.print(
                f"{self.title}: step {self.done:,} of {self.steps:,}, loss {self.loss:.4f}, "
                f"{self.rate:,.0f} images/s, {left:.0f} s left"
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
