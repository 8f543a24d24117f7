"""An average of the weights over the steps (EMA), kept along with the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from patchcast.training.sharding import shared_like


class Average:
    """The exponential moving average of all parameters that are trained.

    After step t its decay is the smaller of `decay` and (1 + t) / (10 + t), so that it does not remember the first
    weights of a short run. Buffers are not averaged: inside `applied` they are those of the trained network.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = Average(layer, 0.9)
    >>> before = layer.weight.item()
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(1.0)
    >>> average.update(1)
    >>> with average.applied():
    ...     print(round(layer.weight.item() - before, 4))
    0.8182

    Args:
        module: whose parameters are trained in place.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self.values = {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an optimizer step; the first is step 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        own = [each.detach().clone() for each in self.parameters.values()]
        self._write(list(self.values.values()))
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Any]:
        """By the names of parameters."""
        return dict(self.values)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for name, value in self.values.items():
            value.copy_(shared_like(state[name], self.parameters[name]))

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters.values(), values, strict=True):
            parameter.copy_(value)  # sharded tensors have no copy of many at once
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered before is not what was written
