"""Memory and work of a training step, without taking it: the step runs on tensors that have shapes and no values."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import OptimizerName, Precision
from patchcast.tokenizers.encoded import Encoded
from patchcast.training.engine import LossModule
from patchcast.training.muon import update_bytes
from patchcast.training.optimization import muon_matrices

VALUE_READ = torch.ops.aten._local_scalar_dense.default


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step's tensors on one device.

    Attributes:
        weights: of the network, its head and its teacher, and their average over the steps if there is one.
        moments: of the optimizer.
        step: the most that gradients, activations and temporary tensors hold at once.
    """

    weights: int
    moments: int
    step: int

    @property
    def peak(self) -> int:
        return self.weights + self.moments + self.step


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations inside make and that are still referred to.

    >>> with LiveBytes() as live:
    ...     for _ in range(3):
    ...         made = torch.zeros(250)
    >>> live.most  # the old one is there until the new one takes its name
    2000

    Args:
        known: tensors that are there before, and are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, operation: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        if operation is VALUE_READ and given[0].dtype == torch.bool:
            return True  # a check of values, such as that no token is blind: there are none to check
        results = operation(*given, **(named or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self._add(result)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.now -= size


def step_memory(
    pretrainer: Pretrainer,
    batch: int,
    *,
    precision: Precision = "fp32",
    pieces: int = 1,
    averaged: bool = False,
    optimizer: OptimizerName = "adamw",
) -> Memory:
    """The memory of a training step on `batch` images at once.

    Measured peaks on the CPU differ by at most a few percent (`tests/test_costs.py`). A GPU's kernels and the CPU's
    attention differ in temporary tensors only. What the process and its libraries take comes on top.

    >>> from patchcast.methods import mae
    >>> memory = step_memory(mae("test_vit", decoder_depth=1, decoder_width=64), 8)
    >>> memory.weights < memory.moments < memory.step
    True

    Args:
        pieces: micro-batches of a step; from the second on, gradients of the earlier ones are there.
        averaged: whether an average of the trained weights is kept (`--ema`).
        optimizer: AdamW has two moments of each parameter, and Muon one of each matrix.
    """
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    objective = LossModule(pretrainer, precision)
    tensors = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    plan = pretrainer.draw(_images(pretrainer, batch), each=pretrainer.repeat)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = {name: _without_values(mode, tensor) for name, tensor in tensors.items()}
        images = _images(pretrainer, batch).contiguous()
        with LiveBytes(weights.values()) as live:
            for _ in range(min(pieces, 2)):
                functional_call(objective, weights, (images, plan)).backward()
    unique = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    trained = sum(tensor.nbytes for tensor in tensors.values() if tensor.requires_grad)
    moments, most = 2 * trained, live.most + images.nbytes
    if optimizer == "muon":
        matrices = [*muon_matrices(pretrainer)]
        moments -= sum(matrix.nbytes for matrix in matrices)
        most = max(most, trained + update_bytes(matrices))
    return Memory(sum(unique.values()) + averaged * trained, moments, most)


def step_flops(pretrainer: Pretrainer, batch: int) -> int:
    """Multiplications and additions in the matrix products and convolutions of a step on `batch` images.

    Counted by `torch.utils.flop_counter` in the forward and backward pass, attention included.

    >>> from patchcast.methods import mae
    >>> network = mae("test_vit", decoder_depth=1, decoder_width=64)
    >>> 0 < step_flops(network, 4) * 2 == step_flops(network, 8)
    True
    """
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    objective = LossModule(pretrainer, "fp32")
    tensors = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    plan = pretrainer.draw(_images(pretrainer, batch), each=pretrainer.repeat)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = {name: _without_values(mode, tensor) for name, tensor in tensors.items()}
        images = _images(pretrainer, batch)
        # Attention as plain products: the counter does not know the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, LiveBytes():
            functional_call(objective, weights, (images, plan)).backward()
    return counter.get_total_flops()


def _images(pretrainer: Pretrainer, batch: int) -> Tensor:
    """Images, or codes, that take no memory: one pixel, expanded."""
    backbone = pretrainer.backbone
    is_codes = isinstance(backbone, ImageGPTBackbone) and isinstance(backbone.tokenizer, Encoded)
    pixel = torch.zeros((), dtype=torch.int64 if is_codes else torch.float32)
    return pixel.expand(batch, backbone.channels, *backbone.image_size)


def _without_values(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
