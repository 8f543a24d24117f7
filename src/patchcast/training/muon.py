"""Muon (Jordan et al. 2024): steps along orthogonalized gradients, for the matrices of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.775, 2.0315), 5
"""Jordan's quintic polynomial, which brings singular values to about 1 in five iterations."""
RMS = 0.2
"""Of AdamW's usual step. A step of Muon is scaled to it, so rates of AdamW hold (Liu et al. 2025, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """Muon for groups with `is_matrix`, and AdamW for all others.

    A matrix moves along its averaged gradient with all singular values near 1, so that rare directions count as much as
    frequent ones. The update is that of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`. That one always
    orthogonalizes in bfloat16, which takes 27 times as long as float32 on a CPU without instructions for it; and it
    takes one matrix at a time, where here matrices of one shape are taken together.

    >>> layer = nn.Linear(4, 4)
    >>> groups = [{"params": [layer.weight], "is_matrix": True}, {"params": [layer.bias], "is_matrix": False}]
    >>> optimizer = Muon(groups, lr=0.1, weight_decay=0.0)
    >>> before = layer.weight.detach().clone()
    >>> layer(torch.randn(8, 4)).square().sum().backward()
    >>> optimizer.step()
    >>> round((layer.weight.detach() - before).square().mean().sqrt().item(), 2)  # about 0.1 times 0.2
    0.02

    Args:
        groups: of parameters, each with `is_matrix`, and options of its own such as `weight_decay`.
        lr: learning rate of both.
        betas: of AdamW.
        weight_decay: of groups that do not name their own, decoupled from the gradient.
        dtype: in which matrices are orthogonalized.
        fused: whether AdamW runs as one kernel, which some devices lack.
    Raises:
        ValueError: if a parameter of a group with `is_matrix` is no matrix.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        dtype: torch.dtype = torch.float32,
        fused: bool = True,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"] if group["is_matrix"] else []:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon moves matrices; got a parameter of shape {tuple(parameter.shape)}")
        others = self._groups(is_matrix=False)
        self.adamw = torch.optim.AdamW(others, betas=betas, fused=fused) if others else None
        self.dtype = dtype

    def _groups(self, *, is_matrix: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["is_matrix"] == is_matrix]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._groups(is_matrix=True):
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for alike in by_shape.values():
                self._move(alike, group["lr"], group["weight_decay"])
        if self.adamw is not None:
            # The groups and the state are this optimizer's, also after `load_state_dict` has replaced them.
            self.adamw.param_groups, self.adamw.state = self._groups(is_matrix=False), self.state
            self.adamw.step()
        return loss

    def _move(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        updates = []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
            updates.append(matrix.grad.lerp(state["momentum_buffer"], MOMENTUM))  # Nesterov's
        scale = RMS * math.sqrt(max(matrices[0].shape))
        for matrix, update in zip(matrices, orthogonalized(torch.stack(updates).to(self.dtype)), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def orthogonalized(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Matrices with the same singular vectors and all singular values near 1, by Newton-Schulz iterations.

    >>> values = torch.linalg.svdvals(orthogonalized(torch.randn(2, 6, 3)))
    >>> bool(((values > 0.5) & (values < 1.5)).all())
    True
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
