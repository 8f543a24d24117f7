"""Ends a run between two steps when a process of it is asked to (SIGTERM)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from patchcast.training.checkpoints import Checkpoints


class EndWhenAsked(L.Callback):
    """Notes SIGTERM, and ends the run in all processes, behind a checkpoint, at the next moment between two steps.

    Lightning's own handler broadcasts from within the signal, amid whatever its process is just sending, and stops
    amid a batch that is taken in pieces.

    Args:
        checkpoints: saves before the end.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.is_predicted = False
        self.group: dist.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Until the end of the block SIGTERM is noted, and does nothing else."""
        before = self._listen()
        try:
            yield
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._listen()  # again: Lightning has put its own handler over ours
        if trainer.world_size > 1:
            # Of the CPU, so that agreeing on it at every step does not wait for a GPU.
            self.group = dist.new_group(backend="gloo")  # type: ignore[assignment]  # every rank is in it

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        is_between_steps = (index + 1) % trainer.accumulate_grad_batches == 0
        if is_between_steps and trainer.global_step < trainer.max_steps and self._is_any_asked():
            self.checkpoints.save_new(trainer)
            raise SIGTERMException

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Held-out images may take longer than is left. If they do not, their loss is not lost either.
        if self._is_any_asked():
            self.checkpoints.save_new(trainer)

    def _is_any_asked(self) -> bool:
        if self.group is None:
            return self.is_predicted
        asked = torch.tensor(int(self.is_predicted))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
        return bool(asked)

    def _listen(self) -> Any:
        """The handler before, or None outside of the main thread, where Python allows none."""
        if threading.current_thread() is not threading.main_thread():
            return None
        return signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_predicted = True
