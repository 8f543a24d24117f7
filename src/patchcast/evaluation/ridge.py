"""A closed-form linear probe for few labels, with the penalty chosen on these labels."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from patchcast.evaluation.features import Features
from patchcast.evaluation.linear import principal_axes, standardize

# Penalties per feature. The range is wide because feature sets need very different ones: a fixed penalty would
# decide which of them looks best.
PENALTIES = tuple(10 ** (half / 2) for half in range(-8, 9))


def ridge_accuracy(train: Features, test: Features) -> float:
    """Accuracy, in [0, 1], of ridge regression to one-hot labels, with the penalty chosen by exact leave-one-out.

    Features are standardized on `train`. The leave-one-out error of every penalty follows from one decomposition
    (Allen's PRESS, 1974), so no images are held out. The result is that of scikit-learn's `RidgeClassifierCV`. With 1
    or 2 labels per class, the choice is very noisy, and features whose signal is in directions of little variance look
    worse than they are.

    >>> import torch
    >>> train = Features(torch.tensor([[0.], [1.], [4.], [5.]]), torch.tensor([3, 3, 7, 7]))
    >>> ridge_accuracy(train, Features(torch.tensor([[-1.], [9.]]), torch.tensor([3, 7])))
    1.0
    """
    x, mean, scale = standardize(train.x)
    classes, targets = train.labels.unique(return_inverse=True)
    one_hot = F.one_hot(targets, len(classes)).to(x)
    y = one_hot - one_hot.mean(dim=0)
    z, axes, variance = principal_axes(x)
    penalty = min(PENALTIES, key=lambda candidate: _left_out_error(z, y, variance, candidate * x.shape[1])) * x.shape[1]
    weight = axes @ (z.T @ y / (variance + penalty)[:, None])
    scores = (test.x.to(x) - mean) / scale @ weight + one_hot.mean(dim=0)
    return float((classes[scores.argmax(dim=1)] == test.labels).double().mean())


def _left_out_error(
    z: Float[Tensor, "N R"], y: Float[Tensor, "N K"], variance: Float[Tensor, " R"], penalty: float
) -> float:
    """Mean squared error on each image of the fit to all others: the residual over one minus the leverage."""
    residual = y - z @ (z.T @ y / (variance + penalty)[:, None])
    leverage = (z.square() / (variance + penalty)).sum(dim=1) + 1 / len(z)  # 1/N is the mean's
    return float((residual / (1 - leverage)[:, None]).square().mean())
