"""What all looks at a network during its training have in common: when they are taken, and that they change nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer
from patchcast.training.sharding import gathered


class Look(L.Callback, ABC):
    """Looks at the network at every evaluation, and at the end; every rank takes part.

    Args:
        every: optimiser steps between two looks.
    """

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.seen = 0

    @abstractmethod
    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        """What is found, by the names of the log's columns; inside `looking`."""

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.seen = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if step == self.seen:  # gradients are still being gathered
            return
        self.seen = step
        if step % self.every and step < trainer.max_steps:
            return
        with looking(module.pretrainer):
            found = self.look(trainer, module)
        for logger in trainer.loggers if found else []:
            logger.log_metrics(found, step=step - 1)  # Lightning counts from 0 in the log


@contextmanager
def looking(pretrainer: Pretrainer) -> Iterator[None]:
    """Eval mode, no gradients, whole weights and no compiling inside; afterwards modes and random states as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        gathered(pretrainer),
        torch.random.fork_rng(devices),
        evaluating(pretrainer),
        torch.compiler.set_stance("force_eager"),
    ):
        yield
