"""Losses: plain functions `(prediction, target) -> one number per prediction`. A plan's weights are applied later."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Loss = Callable[[Float[Tensor, "B G P T"], Tensor], Float[Tensor, "B G P"]]


def squared(prediction: Float[Tensor, "B G P T"], target: Float[Tensor, "B G P T"]) -> Float[Tensor, "B G P"]:
    """Mean squared error over the values of a unit (He et al. 2022, section 3; El-Nouby et al. 2024, equation 2).

    >>> import torch
    >>> squared(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1., 3.]]]])).item()
    5.0
    """
    # torch's losses store only their inputs for the backward pass; writing them out would store intermediates too.
    return F.mse_loss(prediction, target, reduction="none").mean(dim=-1)


def absolute(prediction: Float[Tensor, "B G P T"], target: Float[Tensor, "B G P T"]) -> Float[Tensor, "B G P"]:
    """Mean absolute error over the values of a unit (Xie et al. 2022, section 3.4).

    >>> import torch
    >>> absolute(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1., -3.]]]])).item()
    2.0
    """
    return F.l1_loss(prediction, target, reduction="none").mean(dim=-1)


def smooth_l1(prediction: Float[Tensor, "B G P T"], target: Float[Tensor, "B G P T"]) -> Float[Tensor, "B G P"]:
    """Huber's loss with threshold 1, mean over the values of a unit (Assran et al. 2023 in practice).

    >>> import torch
    >>> smooth_l1(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1., 3.]]]])).item()
    1.5
    """
    return F.smooth_l1_loss(prediction, target, reduction="none").mean(dim=-1)


def cosine(prediction: Float[Tensor, "B G P T"], target: Float[Tensor, "B G P T"]) -> Float[Tensor, "B G P"]:
    """One minus the cosine of the angle between them: 0 for the same direction, 2 for opposite ones (Xu et al. 2025).

    >>> import torch
    >>> cosine(torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])).item()
    1.0
    """
    return 1 - F.cosine_similarity(prediction, target, dim=-1)


def cross_entropy(prediction: Float[Tensor, "B G P V"], target: Int[Tensor, "B G P 1"]) -> Float[Tensor, "B G P"]:
    """Cross-entropy in nats, of codes predicted by their logits (Bao et al. 2022, equation 1; Chen et al. 2020).

    >>> import torch
    >>> cross_entropy(torch.zeros(1, 1, 1, 8), torch.tensor([[[[5]]]])).exp().item()
    8.0
    """
    # Flattened: with the codes in the second dimension, the CPU kernel takes 2.3 times as long.
    return F.cross_entropy(prediction.flatten(0, 2), target.flatten(), reduction="none").view(target.shape[:-1])
