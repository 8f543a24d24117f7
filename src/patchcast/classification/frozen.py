"""A linear head on a frozen backbone: logistic regression, fitted to its optimum, written into timm's last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchcast.classification.model import last_layers
from patchcast.evaluation.features import Features, Loader, check_probe
from patchcast.evaluation.linear import STRENGTHS, logistic_path
from patchcast.modes import evaluating


def head_inputs(model: Any, loader: Loader, device: torch.device | str) -> Features:
    """What the model's last layer sees of each image."""
    rows, labels = [], []
    with evaluating(model):
        for images, targets in loader:
            rows.append(model.forward_head(model.forward_features(images.to(device)), pre_logits=True).float().cpu())
            labels.append(targets)
    if not rows:
        raise ValueError("none of the images can be read")
    return Features(torch.cat(rows), torch.cat(labels))


def fit_linear_head(
    model: nn.Module, train: Features, validation: Features, *, class_weights: Tensor | None = None
) -> dict[float, float]:
    """Fit the last layer in place; its L2 strength is the one with the best validation accuracy, the smallest among
    equals. It is then fitted again on both parts.

    Args:
        train, validation: from `head_inputs`.
        class_weights: of each class in the loss.
    Returns:
        validation accuracy at each strength (scikit-learn's C).
    Raises:
        ValueError: if the model has no single linear last layer, or the features cannot be fitted.
    """
    [layer, *others] = last_layers(model)
    if others or not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no single linear classifier to fit on a frozen backbone; use --no_freeze"
        )
    check_probe(train, validation)
    path = {
        probe.strength: probe.accuracy(validation)
        for probe in logistic_path(train, STRENGTHS, class_weights=class_weights)
    }
    best = max(path, key=lambda strength: (path[strength], -strength))
    both = Features(torch.cat([train.x, validation.x]), torch.cat([train.labels, validation.labels]))
    probe = next(logistic_path(both, [best], class_weights=class_weights))
    weight = (probe.weight / probe.scale[:, None]).T
    bias = probe.bias - weight @ probe.mean
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(float(bias.min()) - 100.0)  # a class without an image is never predicted
        layer.weight[probe.classes] = weight.to(layer.weight)
        layer.bias[probe.classes] = bias.to(layer.bias)
    return path
