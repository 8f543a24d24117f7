"""Watches, during a run, how different the features of some fixed images are."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
from jaxtyping import Real
from torch import Tensor

from patchcast.backbones.backbone import Backbone
from patchcast.collapse import CollapseWarning, Diversity, diversity
from patchcast.pretrainer import embedding_of
from patchcast.training.looks import Look, looking


class FeatureWatch(Look):
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
        super().__init__(every=every)
        self.warns = warns
        self.backbone, self.images = backbone, images
        self.start: Diversity | None = None
        self.warned = False

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        if self.start is None:
            with looking(module.pretrainer):
                self.start = self.features(module)

    def look(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        found = self.features(module)
        if self.warns and not self.warned and self.start is not None and found.collapsed_since(self.start):
            self.warned = True
            warnings.warn(f"step {trainer.global_step}: {found.advice}", CollapseWarning, stacklevel=2)
        return {"feature_variance": found.variance, "feature_rank": found.effective_rank}

    def features(self, module: Any) -> Diversity:
        return diversity(embedding_of(self.backbone, self.images.to(module.device)))

    def state_dict(self) -> dict[str, Any]:
        start = None if self.start is None else [self.start.variance, self.start.effective_rank]
        return {"start": start, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = None if state["start"] is None else Diversity(*state["start"])
        self.warned = state["warned"]
