"""Reconstructions: the visible and the predicted pixels of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchcast.geometry import upsample
from patchcast.modes import evaluating
from patchcast.plans import MaskPlan, Plan
from patchcast.pretrainer import Pretrainer


@dataclass(frozen=True)
class Reconstruction:
    """Images, their visible pixels, and the predictions; NaN where nothing is shown.

    Attributes:
        blind: drawn like `predicted`, from the best prediction that ignores the image (`Target.blind`). Where a target
            omits the mean and contrast of units, both are drawn with the original's, and only what `predicted` shows
            beyond `blind` was predicted.
    """

    images: Float[Tensor, "B C H W"]
    seen: Float[Tensor, "B C H W"]
    predicted: Float[Tensor, "B C H W"]
    blind: Float[Tensor, "B C H W"]


@torch.no_grad()
def reconstruct(pretrainer: Pretrainer, images: Float[Tensor, "B C H W"], plan: Plan) -> Reconstruction:
    """Predict hidden units and insert them into the images; predictions of weight zero are not shown.

    Units that are neither visible nor predicted (I-JEPA's plan has some) are hidden, and stay at the mean color.

    Predictions of normalized targets do not contain a unit's mean and contrast: these are taken from the original, and
    `blind` shows how much of the picture that is.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import mae
    >>> pretrainer, images = mae(wrap("test_vit", img_size=32), decoder_depth=1), torch.randn(1, 3, 32, 32)
    >>> reconstruct(pretrainer, images, pretrainer.draw(images)).predicted.shape
    torch.Size([1, 3, 32, 32])

    Raises:
        ValueError: if the method's targets are not pixels.
    """
    with evaluating(pretrainer):
        output = pretrainer(images, plan)
    counts = torch.ones_like(plan.predict, dtype=torch.bool) if plan.weight is None else plan.weight > 0
    if plan.is_shown is not None:
        counts = counts & ~plan.is_shown
    asked = plan.predict.flatten(1)
    predicted = torch.zeros(len(images), plan.grid.units, dtype=torch.bool, device=images.device)
    predicted.scatter_(1, asked, counts.flatten(1))
    where = upsample(predicted.unflatten(1, plan.grid), (images.shape[-2], images.shape[-1]))[:, None]

    unknown = upsample(_neither(plan, asked).unflatten(1, plan.grid), (images.shape[-2], images.shape[-1]))[:, None]

    def drawn(predictions: Float[Tensor, "B G P T"]) -> Float[Tensor, "B C H W"]:
        values = predictions.new_zeros(len(images), plan.grid.units, predictions.shape[-1])
        values.scatter_(1, asked[..., None].expand(-1, -1, values.shape[-1]), predictions.flatten(1, 2))
        return torch.where(where, pretrainer.target.to_pixels(values, images), images).masked_fill(unknown, 0.0)

    blind = pretrainer.target.blind(output.targets).to(output.predictions)
    seen = images.masked_fill(where | unknown, torch.nan)
    return Reconstruction(images, seen, drawn(output.predictions), drawn(blind))


def _neither(plan: Plan, asked: Int[Tensor, "B K"]) -> Bool[Tensor, "B N"]:
    """Units that a mask neither shows nor asks for."""
    known = torch.zeros(len(asked), plan.grid.units, dtype=torch.bool, device=asked.device)
    if not isinstance(plan, MaskPlan):
        return known
    return ~known.scatter(1, asked, True).scatter(1, plan.visible, True)
