"""A whole step where tensors have shapes and no values, so that reading one raises: the proof that no GPU waits.

On torch's meta device everything runs, backward passes and optimizers too, but products of a meta tensor and one that
was left on the CPU may pass. Fake CUDA tensors notice every tensor on another device, and run forward only. Copies to
the device for which it would have to wait are neither's concern: `Waits` notes those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from patchcast.modes import evaluating
from patchcast.plans import Plan
from patchcast.pretrainer import Pretrainer
from patchcast.training.muon import Muon
from patchcast.training.optimization import by_kind, muon_matrices, parameter_groups


def step_on_meta(pretrainer: Pretrainer, images: Tensor) -> None:
    """Two steps (the second has moments and gradients), the loss in evaluation, and the feature that probes use."""
    plan = pretrainer.draw(images)
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    pretrainer.to("meta").train()
    images, plan = images.to("meta"), plan.to("meta")
    groups = by_kind(parameter_groups(pretrainer, 0.05), muon_matrices(pretrainer))
    optimizer = Muon(groups, lr=1e-3, fused=False)
    trained = [parameter for parameter in pretrainer.parameters() if parameter.requires_grad]
    for _ in range(2):
        optimizer.zero_grad()
        output = pretrainer(images, plan)
        output.loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        pretrainer.after_step()
    with evaluating(pretrainer):
        assert pretrainer(images, plan).loss.is_meta
    assert output.embedding.is_meta


def forward_on_fake_cuda(pretrainer: Pretrainer, images: Tensor) -> None:
    """The loss and the feature that probes use; needs neither a GPU nor a build of torch for one."""
    plan = pretrainer.draw(images)
    with FakeTensorMode():
        for module in pretrainer.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(_fake(parameter), parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, _fake(buffer))
        output = pretrainer.train()(_fake(images), _moved(plan))
        assert output.loss.device.type == output.embedding.device.type == "cuda"


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def _moved(plan: Plan) -> Plan:
    return plan._map(_fake)


class Waits(TorchDispatchMode):
    """Notes the copies of a tensor from the CPU to another device for which the CPU waits.

    Such a copy waits for all that the device was given to do before it; `non_blocking=True` does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []

    def __torch_dispatch__(self, operation: Any, _: Any, given: Sequence[Any] = (), named: Any = None) -> Any:
        named = named or {}
        moved = operation(*given, **named)
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            target, source = (moved, given[0]) if operation == torch.ops.aten._to_copy.default else given[:2]
            is_blocking = not (named.get("non_blocking") or given[2:3] == (True,))
            if source.device.type == "cpu" and target.device.type != "cpu" and is_blocking:
                self.noted.append(f"{tuple(source.shape)} to {target.device}")
        return moved
