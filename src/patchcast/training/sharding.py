"""Weights that are shared out over devices (FSDP2), and whole again where they are needed whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from patchcast.pretrainer import Pretrainer


def shard(pretrainer: Pretrainer, mesh: DeviceMesh) -> None:
    """Share out weights, gradients and the optimiser's state over the mesh.

    All weights are gathered for a step at once: adapters call parts of blocks, which gathering block by block would
    miss. The optimiser's state, which is twice as large, is never gathered.
    """
    fully_shard(pretrainer, mesh=mesh)


@contextmanager
def gathered(pretrainer: Pretrainer) -> Iterator[None]:
    """Weights are whole inside, so that parts of a pretrainer may be called by themselves; every rank must enter."""
    if not isinstance(pretrainer, FSDPModule):
        yield
        return
    pretrainer.unshard()
    try:
        yield
    finally:
        pretrainer.reshard()


def whole_state(pretrainer: Pretrainer) -> dict[str, Tensor]:
    """The state dict with whole tensors on the CPU, at the end of a run: ranks part after it, and each must ask."""
    state: dict[str, Any] = get_model_state_dict(
        pretrainer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.is_initialized():
        dist.destroy_process_group()  # a process that ends with its group open may wait for the others for ever
    return state
