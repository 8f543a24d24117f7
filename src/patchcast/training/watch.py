"""Watches, during a run, how different the features of some fixed images are."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
from jaxtyping import Real
from torch import Tensor

from patchcast.backbones.base import Backbone
from patchcast.collapse import CollapseWarning, Diversity, diversity
from patchcast.pretrainer import embed
from patchcast.training.sharding import gathered


class FeatureWatch(L.Callback):
    """Logs variance and rank of the pooled features (`patchcast.collapse`), and warns once if they collapse.

    A collapse is judged against the start of the run: the images may be all alike to an untrained network too. That
    start is in the checkpoint, so that a run that goes on is judged by its own beginning.

    Args:
        backbone: the one that is trained.
        images: some hundred, the same each time, as in evaluation.
        every: optimiser steps between two looks.
        warns: whether the target is learnt along, so that a collapse would make the loss small.
    """

    def __init__(self, backbone: Backbone, images: Real[Tensor, "N C H W"], *, every: int, warns: bool = True) -> None:
        self.warns = warns
        self.backbone, self.images, self.every = backbone, images, every
        self.start: Diversity | None = None
        self.warned = False
        self.seen = 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.seen = trainer.global_step
        if self.start is None:
            self.start = self.look(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        if step == self.seen:  # gradients are still being gathered
            return
        self.seen = step
        if step % self.every and step < trainer.max_steps:
            return
        found = self.look(module)
        for logger in trainer.loggers:
            # Lightning counts from 0 in the log.
            logger.log_metrics({"feature_variance": found.variance, "feature_rank": found.rank}, step=step - 1)
        if self.warns and not self.warned and self.start is not None and found.collapsed_since(self.start):
            self.warned = True
            warnings.warn(f"step {step}: {found.advice}", CollapseWarning, stacklevel=2)

    def look(self, module: Any) -> Diversity:
        with gathered(module.pretrainer):
            return diversity(embed(self.backbone, self.images.to(module.device)))

    def state_dict(self) -> dict[str, Any]:
        start = None if self.start is None else [self.start.variance, self.start.rank]
        return {"start": start, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = None if state["start"] is None else Diversity(*state["start"])
        self.warned = state["warned"]
