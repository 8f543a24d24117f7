"""Eval mode for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; then the mode of every submodule is restored, also of those frozen in eval mode.

    Gradients are not affected: see `evaluating`.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with eval_mode(model):
    ...     [part.training for part in model]
    [False, False]
    >>> [part.training for part in model]
    [True, False]
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`eval_mode` without gradients, for features, probes and pictures.

    Not inference mode: tensors that a module caches (tables of positions) must work in training too.

    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model):
    ...     model(torch.zeros(1, 2)).requires_grad, model.training
    (False, False)
    """
    with eval_mode(module), torch.no_grad():
        yield
