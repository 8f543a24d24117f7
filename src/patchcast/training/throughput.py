"""How fast a run is, what it waits for, and how much memory it takes."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch

SECONDS = 1.0
"""Shortest time over which a rate is measured, unless an evaluation comes before."""


@runtime_checkable
class Waits(Protocol):
    """What batches come from."""

    batch_size: int
    waited: float
    """Seconds that the process has waited for batches so far."""


class Throughput(L.Callback):
    """Logs images a second, the share of time in which the process waited for data, and its peak memory.

    Both are over the last second or more of training: evaluations and checkpoints do not count. A GPU may still be at
    work on what was queued while the process waits, so that there the share is the most that could be won by faster
    loading. It has to come after what waits for the GPU (`FiniteLoss`), and before what looks at the network.

    Args:
        stream: the batches.
        log_every: optimiser steps between two rows of the log.
        pauses: numbers of optimiser steps after each of which something else than training is done.
    """

    def __init__(self, stream: Waits, *, log_every: int, pauses: tuple[int, ...] = ()) -> None:
        self.stream, self.log_every, self.pauses = stream, log_every, pauses
        self.rate, self.waiting = 0.0, 0.0
        self.done = 0
        self.begun: tuple[float, float, int] | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.done, self.begun = trainer.global_step, None

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
        if self.begun is None:
            self.begin()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.done:  # gradients are still being gathered
            return
        self.done = step = trainer.global_step
        pauses = any(step % each == 0 for each in self.pauses)
        assert self.begun is not None
        since, waited, first = self.begun
        passed = time.perf_counter() - since
        if passed >= SECONDS or (pauses and passed > 0):
            self.rate = (step - first) * self.stream.batch_size / passed
            self.waiting = (self.stream.waited - waited) / passed
            self.begin()
        if pauses:
            self.begun = None
        if self.rate and step % self.log_every == 0:
            memory = {"peak_memory_mb": peak_memory(module.device)}
            found = {"images_per_second": self.rate, "data_wait": self.waiting, **memory}
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step - 1)

    def begin(self) -> None:
        self.begun = time.perf_counter(), self.stream.waited, self.done


def peak_memory(device: torch.device) -> float:
    """The most that this process has held so far, in MiB: of the GPU's memory by tensors; else of main memory, at all.

    >>> peak_memory(torch.device("cpu")) > 1
    True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")  # its standard library does not tell
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
