"""Checkpoints of a run: written whole or not at all, two kept, and a damaged one passed over."""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from patchcast.training.log import MetricsFile

KEPT = 2


class WholeFiles(TorchCheckpointIO):
    """Writes beside the file and renames, so that no process, killed at any moment, leaves half a checkpoint.

    Lightning's own goes through the folder for temporary files, which may be on another disk, where a move is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        whole = Path(path)
        whole.parent.mkdir(parents=True, exist_ok=True)
        partial = whole.with_suffix(".partial")
        try:
            with partial.open("wb") as out:
                torch.save(checkpoint, out)
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)  # a full disk needs the room
            raise
        partial.replace(whole)


class Checkpoints(Checkpoint):
    """Saves every so many optimiser steps, and at the last one.

    Args:
        folder: they are `step=N.ckpt` there; the two latest are kept.
        every: optimiser steps between two.
        metrics: written before each, so that a run which goes on from one has all rows up to it.
        metrics_every: optimiser steps between two rows.
    """

    def __init__(self, folder: Path, *, every: int, metrics: MetricsFile, metrics_every: int) -> None:
        self.folder, self.every = folder, every
        self.metrics, self.metrics_every = metrics, metrics_every
        self.saved = -1

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            self.save_new(trainer)

    def save_new(self, trainer: L.Trainer) -> None:
        """Unless this step is saved already, as it is while gradients of the next are gathered."""
        if trainer.global_step != self.saved:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        step = self.saved = trainer.global_step
        if step % self.metrics_every == 0 and "loss" in trainer.callback_metrics:
            # Lightning hands this step's row to the log only after its callbacks.
            row = {name: float(value) for name, value in trainer.callback_metrics.items() if name in ("loss", "lr")}
            self.metrics.log_metrics(row, step - 1)
        self.metrics.write()
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step=*.ckpt"), key=step_of)[:-KEPT]:
                old.unlink()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.metrics.write()


def latest_checkpoint(out: Path) -> Path | None:
    """The latest sound checkpoint under a run's folder; damaged ones are warned of and passed over."""
    for checkpoint in sorted((out / "checkpoints").glob("step=*.ckpt"), key=step_of, reverse=True):
        if is_whole(checkpoint):
            return checkpoint
        warnings.warn(f"{checkpoint} is damaged and passed over", stacklevel=2)
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether every byte is what was written: torch's files are zip archives with a checksum for every tensor."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step="))
