"""Versions of images for pictures: what a pretrainer sees, predicts and completes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.data import denormalize
from patchcast.drawing.completion import complete_pixels
from patchcast.drawing.figures import Version
from patchcast.drawing.generation import complete, parts, sample
from patchcast.drawing.reconstruction import reconstruct
from patchcast.drawing.sheets import GRAY, sheet, with_labels
from patchcast.geometry import upsample
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import Attend

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, where white is 1."""


NEW = "new"
"""Name of the row of new images that an ImageGPT draws."""
BLIND_ROW = "the row 'blind' shows what that is without any prediction"
"""For captions of pictures with such a row."""


def draws_codes(pretrainer: Pretrainer) -> bool:
    """Whether it is a causal ImageGPT, which draws images code by code."""
    backbone = pretrainer.backbone
    return isinstance(backbone, ImageGPTBackbone) and bool(backbone.model.causal)


def completes_pixels(pretrainer: Pretrainer) -> bool:
    """Whether it can complete images patch by patch, as AIM on raw pixels."""
    target = pretrainer.target
    return isinstance(pretrainer.view, Attend) and isinstance(target, Pixels) and not target.normalize


def caption(pretrainer: Pretrainer, phrase: str) -> str:
    """The caption of a figure of `versions`: which images they are, and what was not predicted."""
    if draws_codes(pretrainer):
        return f"{phrase}, in the colors of the palette"
    lent = pretrainer.target.from_image
    return f"{phrase}. {lent[0].upper()}{lent[1:]}; {BLIND_ROW}." if lent else phrase


def versions(
    pretrainer: Pretrainer, images: Float[Tensor, "B C H W"], normalization: Normalization, *, seed: int = 0
) -> dict[str, Version]:
    """Images, their visible parts, and predictions; for an ImageGPT, two completions of their upper halves.

    Pretrainer and images are on the same device; results are on the CPU.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import mae
    >>> pretrainer = mae(wrap("test_vit", img_size=32), decoder_depth=1)
    >>> list(versions(pretrainer, torch.rand(2, 3, 32, 32), ((0.5,) * 3, (0.5,) * 3)))
    ['image', 'seen', 'blind', 'predicted']

    Where predictions lack the mean and contrast of units, these are the image's own. `blind` then shows them without a
    prediction, so that they are not taken for one.

    Raises:
        ValueError: if the method's targets are not pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    if draws_codes(pretrainer):
        return _completed_halves(pretrainer, images, generator)
    result = reconstruct(pretrainer, images, pretrainer.draw(images, generator))
    shown = {
        "image": Version(_drawn(result.images, normalization)),
        "seen": Version(_drawn(result.seen.nan_to_num(), normalization), result.seen.isnan().any(dim=1).cpu()),
    }
    if pretrainer.target.from_image:
        shown["blind"] = Version(_drawn(result.blind, normalization))
    return {**shown, "predicted": Version(_drawn(result.predicted, normalization))}


def completed(
    pretrainer: Pretrainer,
    images: Float[Tensor, "B C H W"],
    normalization: Normalization,
    *,
    prefix: int | None = None,
    seed: int = 0,
) -> dict[str, Version]:
    """For AIM on raw pixels: images, their first units, and their completions patch by patch.

    Args:
        prefix: number of given units; None for half of them.
    Raises:
        CannotError, ValueError: see `complete_pixels`.
    """
    plan: Any = pretrainer.draw(images, torch.Generator().manual_seed(seed))
    prefix = plan.grid.units // 2 if prefix is None else prefix
    result = complete_pixels(pretrainer, images, prefix, generator=torch.Generator().manual_seed(seed))
    size = (images.shape[-2], images.shape[-1])
    is_hidden = upsample((plan.rank >= prefix).unflatten(1, plan.grid), size).cpu()
    return {
        "image": Version(_drawn(images, normalization)),
        "given": Version(_drawn(images, normalization), is_hidden),
        "completed": Version(_drawn(result, normalization)),
    }


def samples(pretrainer: Pretrainer, count: int, *, seed: int = 0) -> UInt8[Tensor, "count C H W"]:
    """New images drawn by an ImageGPT."""
    tokenizer: Any = pretrainer.target.tokenizer
    ids = sample(pretrainer, count, generator=torch.Generator().manual_seed(seed))
    return tokenizer.decode(ids, parts(pretrainer)[0].grid).cpu()


def progress_sheet(
    pretrainer: Pretrainer, images: Float[Tensor, "B C H W"], normalization: Normalization
) -> Image.Image:
    """One picture of the pretrainer's current state: a row per version, and for an ImageGPT a row of samples."""
    rows = {name: _as_png(version) for name, version in versions(pretrainer, images, normalization).items()}
    if draws_codes(pretrainer):
        rows[NEW] = samples(pretrainer, len(images))
    return with_labels(sheet(torch.cat(list(rows.values())), columns=len(images)), names=list(rows))


def _completed_halves(
    pretrainer: Pretrainer, images: Float[Tensor, "B C H W"], generator: torch.Generator
) -> dict[str, Version]:
    tokenizer: Any = pretrainer.target.tokenizer
    grid = pretrainer.backbone.grid(images)
    half = grid.units // 2
    ids = complete(pretrainer, images, half, copies=2, generator=generator)
    whole = tokenizer.decode(tokenizer.encode(images), grid).cpu()
    is_hidden = (torch.arange(grid.units) >= half).view(1, *grid).expand(len(images), -1, -1)
    is_hidden = upsample(is_hidden, (whole.shape[-2], whole.shape[-1]))
    first, second = (tokenizer.decode(copy, grid).cpu() for copy in ids.unbind(dim=1))
    return {
        "image": Version(whole),
        "given": Version(whole, is_hidden),
        "drawn": Version(first),
        "again": Version(second),
    }


def _drawn(images: Float[Tensor, "B C H W"], normalization: Normalization) -> UInt8[Tensor, "B C H W"]:
    return denormalize(images.cpu(), *normalization)


def _as_png(version: Version) -> UInt8[Tensor, "B C H W"]:
    """An image for a PNG: one channel or the first three; gray where hidden."""
    images, hidden = version
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    return shown if hidden is None else shown.masked_fill(hidden[:, None], GRAY)
