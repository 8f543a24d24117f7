"""`Training`: a `Pretrainer` as Lightning runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from patchcast.data.batched import Cuts
from patchcast.data.seeds import mix_seed
from patchcast.plans.earlier import as_before
from patchcast.pretrainer import Output, Pretrainer
from patchcast.schedules import warmup_cosine
from patchcast.training.optimization import Optimization, make_optimizer
from patchcast.training.sharding import shard

PLANS = "2026-12"  # which rules plans are drawn by: see patchcast.plans.earlier


class Training(L.LightningModule):
    """Trains a pretrainer for a number of steps.

    All chance in a step comes from (seed, step, piece), so that a run that goes on from a checkpoint draws what it
    would have drawn, and nothing random needs saving. The plan is drawn for the batch of all devices, and each takes
    its rows: what is learnt does not depend on how many devices share a batch, or in how many pieces they take it.

    Args:
        steps: optimiser steps of the whole run.
        accumulate: pieces in which a device takes its part of a batch.
        finish: makes images of crops that workers have left unfinished (`patchcast.data.batched`), on the device.
    """

    pretrainer: Pretrainer

    def __init__(
        self,
        pretrainer: Pretrainer,
        optimization: Optimization,
        *,
        steps: int,
        seed: int,
        accumulate: int = 1,
        finish: Callable[[Cuts], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.pretrainer = pretrainer
        self.optimization, self.steps, self.seed, self.accumulate = optimization, steps, seed, accumulate
        self.finish = finish
        self.gathered: Tensor | float = 0.0  # the losses of a batch's pieces so far
        # No gradient ever reaches a classifier head that stays behind; DDP would wait for it.
        for parameter in pretrainer.idle_parameters():
            parameter.requires_grad_(False)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.pretrainer, self.device_mesh["data_parallel"])  # type: ignore[index]

    def on_after_batch_transfer(self, batch: Sequence[Any], dataloader_idx: int) -> Sequence[Any]:
        if self.finish is None or not isinstance(batch[0], Cuts):
            return batch
        return [self.finish(batch[0]), *batch[1:]]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["plans"] = PLANS

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "plans" not in checkpoint:  # of an earlier version: the run goes on with the plans that it has had so far
            self.pretrainer.plan = as_before(self.pretrainer.plan)

    def training_step(self, batch: Sequence[Any], index: int) -> Tensor:
        images, pieces = batch[0], self.trainer.world_size * self.accumulate
        piece = index % self.accumulate * self.trainer.world_size + self.global_rank
        torch.manual_seed(mix_seed(self.seed, self.global_step, 0))
        plan, share = self.pretrainer.draw_piece(images, piece, pieces)
        if piece:
            torch.manual_seed(mix_seed(self.seed, self.global_step, piece))
        output: Output = self.pretrainer(images, plan)
        loss = output.loss * share
        self.gathered = loss.detach() + (self.gathered if index % self.accumulate else 0.0)
        if (index + 1) % self.accumulate == 0:
            self.log("loss", self.gathered / self.accumulate, batch_size=len(output.predictions), sync_dist=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        """The same loss on images not trained on, under the same plans each time."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, index))
        output: Output = self.pretrainer(batch[0], generator=generator)
        self.log("eval_loss", output.loss, batch_size=len(output.predictions), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.pretrainer.target.update(self.pretrainer.backbone)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By torch: Lightning refuses fused optimisers in mixed precision, for a scaling that bf16 does without."""
        if gradient_clip_val:
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.pretrainer, self.optimization)
        shape = partial(warmup_cosine, steps=self.steps, warmup=self.optimization.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
