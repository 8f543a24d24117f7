"""Weights that devices share (FSDP2): gathered for one block at a time, and the next block's at the same time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from patchcast.pretrainer import Pretrainer


def autocast(device: str) -> torch.autocast:
    """Matrix products in bf16.

    Without the cache of casts, gradients of a weight that is used twice are summed in fp32.
    """
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


def block_modules(pretrainer: Pretrainer) -> list[nn.Module]:
    """The blocks of teacher, backbone and predictor, in the order in which a step runs them."""
    parts = (pretrainer.target, pretrainer.backbone, pretrainer.predictor)
    return [block for part in parts for block in part.block_modules()]


def shard(objective: Any, mesh: DeviceMesh, *, compiled: bool = False) -> Any:
    """Share out weights, gradients and the optimizer's state over the mesh, block by block.

    While a block runs, its weights and those of the next block are gathered, and no others; what is in no block
    (patches, positions, norms, heads) is gathered for a whole step. In bf16, the matrices of blocks are gathered in
    bf16, so half as much is sent, and their gradients are summed in fp32.

    Args:
        objective: a `LossModule`.
        compiled: whether torch.compile makes kernels for each block: around the gathering, graphs would break.
    """
    pretrainer, mesh = objective.pretrainer, mesh["data_parallel"]
    sharded = []
    for block in block_modules(pretrainer):
        if compiled:
            block.forward = torch.compile(block.forward)
        policy = _policy(block, objective.precision)
        sharded.append(fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy))
    fully_shard(pretrainer, mesh=mesh, reshard_after_forward=False)
    # Of predictions, which nobody changes in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDPPretrainer\) returned a view")
    for one, following in pairwise(sharded):
        one.set_modules_to_forward_prefetch([following])  # in the backward pass, FSDP2 does so by itself
    # The first module that runs is taken for the root; looks run blocks before the first step.
    pretrainer._get_fsdp_state()._lazy_init()
    return objective


def _policy(block: nn.Module, precision: str) -> MixedPrecisionPolicy:
    """Weights of products are gathered as `autocast` would cast them, so that numbers are those of one device.

    Inputs are not cast: that is left to `autocast` too.
    """
    products = {module.weight for module in block.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    knows_parameters = "param_dtype_override_fn" in MixedPrecisionPolicy.__dataclass_fields__  # since torch 2.15
    if precision != "bf16" or not knows_parameters:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
        param_dtype_override_fn=lambda weight: None if weight in products else weight.dtype,
    )


@contextmanager
def gathered(pretrainer: Pretrainer) -> Iterator[None]:
    """Gather all sharded weights, so that parts of a pretrainer can be called; every rank must enter.

    Weights that are gathered in bf16 are used in bf16.
    """
    if not isinstance(pretrainer, FSDPModule):
        yield
        return
    modules = [module for module in pretrainer.modules() if isinstance(module, FSDPModule)]
    pretrainer.set_reshard_after_forward(False)
    for module in modules:
        module.unshard()
    is_bf16 = any(parameter.dtype == torch.bfloat16 for parameter in pretrainer.parameters())
    device = next(pretrainer.parameters()).device.type
    try:
        with autocast(device) if is_bf16 else nullcontext():
            yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not pretrainer, recurse=False)


def whole(value: Any) -> Any:
    """A sharded tensor gathered on the CPU; other values unchanged. Every rank must call this."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def shared_like(value: Any, model: Tensor) -> Any:
    """A full tensor sharded like `model`, if that is sharded and has the same shape; a sharded one as it is."""
    if isinstance(value, DTensor):
        return value
    if isinstance(model, DTensor) and isinstance(value, Tensor) and value.shape == model.shape:
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value


def whole_state(pretrainer: Pretrainer) -> dict[str, Tensor]:
    """The state dict with whole tensors on the CPU, at the end of a run: ranks part after it, and each must ask."""
    state = {name: whole(value) for name, value in pretrainer.state_dict().items()}
    if dist.is_initialized():
        dist.destroy_process_group()  # a process that ends with its group open may wait for the others for ever
    return state
