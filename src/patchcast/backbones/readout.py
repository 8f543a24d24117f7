"""Readouts: how the units of an image become one feature, in every probe, `embed` and exported program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchcast.backbones.capabilities import Readout

if TYPE_CHECKING:
    from patchcast.backbones.backbone import Backbone, ImageBatch


def mean(units: Float[Tensor, "B N D"], is_valid: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B D"]:
    """The mean over units without padding.

    >>> mean(torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    if is_valid is None:
        return units.mean(dim=1)
    weight = is_valid[..., None].to(torch.float32)
    return (units * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def mean_std(units: Float[Tensor, "B N D"], is_valid: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B 2*D"]:
    """The mean and the standard deviation over units without padding.

    >>> mean_std(torch.tensor([[[1.0], [3.0]]])).round(decimals=4).tolist()
    [[2.0, 1.0]]
    """
    center = mean(units, is_valid)
    variance = mean((units - center[:, None]).square(), is_valid)
    return torch.cat([center, (variance + 1e-12).sqrt()], dim=1)  # at 0 the root has no gradient


def _of_units(summarize: Callable[..., Tensor]) -> Callable[[Backbone, ImageBatch], Tensor]:
    return lambda backbone, images: summarize(*backbone.units_and_validity(images))


def _of_blocks(backbone: Backbone, images: ImageBatch) -> Float[Tensor, "B D"]:
    maps = backbone.block_outputs(images)
    return torch.cat([mean_std(block.flatten(2).transpose(1, 2)) for block in maps], dim=1)


READOUTS: dict[Readout, Callable[[Backbone, ImageBatch], Float[Tensor, "B D"]]] = {
    "mean": _of_units(mean),
    "mean_std": _of_units(mean_std),
    "blocks": _of_blocks,
    "class": lambda backbone, images: backbone.class_token(images),
}
"""By name: the mean over units; mean and standard deviation; both of them of every block's output; the class token."""
