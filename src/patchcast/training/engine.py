"""Devices, precision and sharding of a run, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import ModelParallelStrategy, Strategy
from lightning_utilities.core import rank_zero
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch
from patchcast.plans import Plan
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Device, Precision
from patchcast.training.sharding import autocast, shard


@dataclass(frozen=True)
class Engine:
    """How a run is executed. Nothing here changes the result, except for rounding and the choice of dropped-out units.

    Attributes:
        precision: of matrix products; weights stay fp32.
        device: the kind of device.
        log_every: steps between two rows of the log.
        eval_every: steps between two evaluations: held-out loss, features, probes, pictures.
        checkpoint_every: steps between two checkpoints; the last two are kept.
        devices: number of devices on each node.
        nodes: number of machines.
        sharded: shard the weights over the devices (FSDP2) instead of replicating them (DDP).
        compiled: compile the model with torch.compile.
        checkpointing: recompute the activations of blocks in the backward pass instead of storing them.
    """

    precision: Precision
    device: Device
    log_every: int
    eval_every: int
    checkpoint_every: int
    devices: int = 1
    nodes: int = 1
    sharded: bool = False
    compiled: bool = False
    checkpointing: bool = False

    def fabric(self) -> Fabric:
        """Fabric for these devices, not launched yet.

        Fabric's own precision stays fp32, because its conversion of inputs fails on frozen dataclasses such as plans.
        `LossModule` sets the precision instead.
        """
        logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
        rank_zero.log.addFilter(is_no_advice)  # Fabric's logger, or Lightning's where that is imported as well
        ranks = self.devices * self.nodes
        strategy: str | Strategy = "ddp" if ranks > 1 else "auto"
        if self.sharded:
            share_out = partial(shard, compiled=self.compiled)
            strategy = ModelParallelStrategy(share_out, data_parallel_size=ranks, tensor_parallel_size=1)
        return Fabric(
            accelerator=self.device,
            devices=self.devices,
            num_nodes=self.nodes,
            strategy=strategy,
            precision="32-true",
        )


class LossModule(nn.Module):
    """A module whose forward pass returns the loss, for DDP and FSDP2 to wrap.

    Attributes:
        losses: the loss of each objective in the last forward pass, if there are several.

    Args:
        precision: of matrix products (autocast).
    """

    def __init__(self, pretrainer: Pretrainer, precision: Precision) -> None:
        super().__init__()
        self.pretrainer, self.precision = pretrainer, precision
        self.losses: dict[str, Tensor] = {}

    def forward(self, images: ImageBatch, plan: Plan) -> Tensor:
        device = plan.predict.device.type
        # With autocast's cache, gradients of a weight that is used twice would be summed in bf16.
        with autocast(device) if self.precision == "bf16" else nullcontext():
            output = self.pretrainer(images, plan)
        self.losses = output.losses
        loss: Tensor = output.loss
        return loss


def is_no_advice(record: logging.LogRecord) -> bool:
    """False for the advice to multiply fp32 matrices with less precision: products are in bf16 where that is wanted."""
    return "set_float32_matmul_precision" not in record.getMessage()


@contextmanager
def one_voice(fabric: Fabric) -> Iterator[None]:
    """Errors that all ranks raise are reported once: processes that this program started end in silence."""
    try:
        yield
    except (ValueError, InterruptedError, KeyboardInterrupt) as end:
        environment = getattr(fabric.strategy, "cluster_environment", None)
        if fabric.local_rank and isinstance(environment, LightningEnvironment):
            raise SystemExit from end
        raise


def uses_cuda(device: Device) -> bool:
    """Whether a run trains on a GPU of NVIDIA's or AMD's."""
    return device != "cpu" and torch.cuda.is_available()


def usable_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reads_ahead(device: Device, workers: int) -> bool:
    """Whether a thread reads a batch while the one before it is used.

    Always where a GPU trains. On the CPU only where a core is free: workers read ahead anyway, and where torch's
    threads use all cores, it was not measured.
    """
    return uses_cuda(device) or (workers == 0 and usable_cores() > torch.get_num_threads())


def default_workers(device: Device) -> int:
    """None where the CPU trains; one for each core, up to 8, where a GPU does."""
    return min(8, os.cpu_count() or 1) if uses_cuda(device) else 0


def products_in(precision: Precision) -> torch.dtype:
    """The type of matrix products."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def default_precision(device: Device) -> Precision:
    """bf16 on a GPU with hardware for it, fp32 elsewhere; for the CPU, `patchcast.runs.speed` measures both."""
    return "bf16" if uses_cuda(device) and torch.cuda.is_bf16_supported() else "fp32"
