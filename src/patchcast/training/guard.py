"""Ends a run whose loss is no number any more, before it can be saved over a good checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor

BAD_BATCH = "bad-batch.safetensors"
ADVICE = "try a lower lr, more warmup, a smaller clip, or fp32"


class NotFinite(ValueError):
    """The loss has become NaN or infinite."""


class FiniteLoss(L.Callback):
    """Raises `NotFinite` at the step at which the loss is no number, and keeps that step's images.

    The loss of a step is looked at when the next one has been queued, or before a checkpoint: looking at once would
    make a GPU wait for each step. No checkpoint is ever written of a network that such a loss has reached.

    Args:
        out: the run's folder, where the images go.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.pending: tuple[int, Tensor, Any] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.look()
        self.pending = (trainer.global_step, outputs["loss"].detach(), batch[0])

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.look()
        # A gradient may overflow behind a loss that does not.
        bad = [name for name, each in module.named_parameters() if not torch.isfinite(each.detach()).all()]
        if bad:
            raise NotFinite(
                f"after step {trainer.global_step}, {len(bad)} parameters are no numbers any more ({bad[0]} first); "
                f"the last good checkpoint is kept: {ADVICE}"
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.look()

    def look(self) -> None:
        pending, self.pending = self.pending, None
        if pending is None or torch.isfinite(pending[1]):
            return
        step, loss, images = pending
        kept = ""
        if isinstance(images, Tensor):
            save_file({"images": images.contiguous().cpu()}, self.out / BAD_BATCH)
            kept = f" its images are in {self.out / BAD_BATCH};"
        raise NotFinite(f"the loss of step {step} is {loss.item()};{kept} the last good checkpoint is kept: {ADVICE}")
