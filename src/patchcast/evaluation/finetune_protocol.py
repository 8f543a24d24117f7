"""`patchcast probe --finetune`: fine-tune all weights, and compare with training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from patchcast import options
from patchcast.evaluation.finetuning import finetune
from patchcast.evaluation.intervals import accuracy_interval
from patchcast.evaluation.protocol import Protocol, Request, Subject, new_table

FINETUNE_BATCH = 64
LAYER_DECAY = 0.65
"""Factor of the learning rate from each block to the one before it; MAE uses 0.65 to 0.75 for ViT-B."""
PRECISION = {"cpu": None, "cuda": torch.bfloat16}


class FinetuneProtocol(Protocol[Tensor]):
    """The test images that a network classifies correctly after training all weights with labels."""

    file = "finetune"

    def __init__(self, options: options.Finetune, request: Request, subject: Subject) -> None:
        if options.finetune < 1:
            raise ValueError(f"fine-tuning takes at least 1 epoch; got {options.finetune}")
        self.epochs, self.request = options.finetune, request
        self.labeled = request.labeled()
        self.description = self.labeled.description
        self.steps = max(1, round(self.epochs * len(self.labeled.train) / FINETUNE_BATCH))

    def measure(self, subject: Subject) -> Tensor:
        return finetune(
            subject.backbone,
            self.labeled.augmented(subject.augment, steps=self.steps, batch_size=FINETUNE_BATCH, seed=0),
            self.labeled.loaders(subject.evaluate)[1],
            classes=self.labeled.classes,
            # An untrained network has nothing to preserve: all its blocks have the same rate.
            layer_decay=LAYER_DECAY if subject.is_trained else 1.0,
            device=self.request.device,
            precision=PRECISION[self.request.device],
        ).correct

    def tables(self, results: Mapping[str, Tensor]) -> list[Table]:
        table = new_table(self.description, "fine-tuned from", "accuracy", "95 % interval")
        for name, correct in results.items():
            value, low, high = (100 * share for share in accuracy_interval(correct))
            table.add_row(name, f"{value:.1f}", f"{low:.1f} to {high:.1f}")
        table.caption = (
            f"All weights, {self.epochs} epochs in batches of {FINETUNE_BATCH}, AdamW at 1e-3; in a trained network "
            f"each block learns at {LAYER_DECAY} of the rate of the next one, in an untrained one all "
            "learn at the same rate."
        )
        return [table]

    def record(self, results: Mapping[str, Tensor]) -> dict[str, Any]:
        rows = {name: {"accuracy": accuracy_interval(correct)._asdict()} for name, correct in results.items()}
        return {"epochs": self.epochs, "steps": self.steps, **rows}

    def correct(self, result: Tensor) -> Tensor:
        return result
