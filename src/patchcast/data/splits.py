"""Seeded draws that give each class its share."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def draw_per_class(labels: Int[Tensor, " N"], per_class: int, *, generator: torch.Generator) -> Int[Tensor, " M"]:
    """Indices of `per_class` random images from every class, grouped by class.

    >>> labels = torch.tensor([0, 0, 0, 1, 1])
    >>> labels[draw_per_class(labels, 2, generator=torch.Generator().manual_seed(0))].tolist()
    [0, 0, 1, 1]

    Raises:
        ValueError: if a class has fewer images than that.
    """
    labels, chosen = labels.cpu(), []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(
                f"class {label} has {len(members)} images, but {per_class} labels per class were asked for"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen)


def stratified_split(
    labels: Int[Tensor, " N"], share: float, *, generator: torch.Generator
) -> tuple[Int[Tensor, " F"], Int[Tensor, " H"]]:
    """Indices of the images to fit on, and of a random `share` of each class held out (at least one image).

    An image that is alone in its class is used for fitting.

    >>> fit, held = stratified_split(torch.tensor([0] * 10 + [1] * 5), 0.2, generator=torch.Generator().manual_seed(0))
    >>> len(fit), len(held)
    (12, 3)

    Raises:
        ValueError: if no class has two images.
    """
    labels = labels.cpu()
    fit, held = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            fit.append(members)
            continue
        members = members[torch.randperm(len(members), generator=generator)]
        count = max(1, round(len(members) * share))
        held.append(members[:count])
        fit.append(members[count:])
    if not held:
        raise ValueError("each class has a single image; holding some out for validation needs a class of 2 or more")
    return torch.cat(fit).sort().values, torch.cat(held).sort().values
