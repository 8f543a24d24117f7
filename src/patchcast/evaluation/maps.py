"""Pictures of unit features: their first three principal components as colors."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from patchcast.geometry import Grid


def pca_maps(units: Float[Tensor, "B N D"], grid: Grid) -> UInt8[Tensor, "B 3 rows cols"]:
    """The first three principal components over the units of all images together, as red, green and blue.

    Units of similar color have similar features, within and across images. Each component runs over the middle 98
    of its values; its sign, and so the colors themselves, have no meaning.

    >>> left_and_right = torch.randn(2, 1, 8).repeat_interleave(8, dim=1).view(1, 16, 8)
    >>> pca_maps(left_and_right, Grid(4, 4)).shape
    torch.Size([1, 3, 4, 4])

    Raises:
        ValueError: if there are fewer than 3 channels, or 4 units.
    """
    flat = units.flatten(0, 1).double()
    if flat.shape[1] < 3 or len(flat) < 4:
        raise ValueError(f"a map needs 3 channels and 4 units; got {flat.shape[1]} channels and {len(flat)} units")
    flat = flat - flat.mean(dim=0)
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    scores = flat @ axes.T
    low, high = scores.quantile(0.01, dim=0), scores.quantile(0.99, dim=0)
    shares = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return (shares * 255).round().to(torch.uint8).view(len(units), *grid, 3).movedim(-1, 1)
