"""The optimizer and its parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NEVER_DECAYED = ("pos_embed", "position", "token", "rel_pos")


@dataclass(frozen=True)
class Optimization:
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        lr: the peak learning rate.
        betas: of AdamW.
        weight_decay: of matrices; norms, biases, positions and tokens are never decayed.
        warmup: share of the steps over which the learning rate rises from zero.
        clip: largest norm of the gradient; None for no clipping.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float | None = None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay; norms, biases, positions and tokens are without.

    >>> groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.05)
    >>> [(group["weight_decay"], len(group["params"])) for group in groups]
    [(0.05, 1), (0.0, 3)]
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own_name = name.rpartition(".")[2]  # a module may be a "token_mixer", and is no token
            spare = parameter.ndim < 2 or any(word in own_name for word in NEVER_DECAYED)
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """Fused AdamW over the two groups: one kernel instead of one for every parameter."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
