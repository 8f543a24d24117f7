"""Figures of reconstructions, losses and dependencies, without pyplot: they need no display and no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

Points = tuple[Sequence[int], Sequence[float]]


class Version(NamedTuple):
    """One version of some images; nothing is shown where `hidden` is True."""

    images: UInt8[Tensor, "B C H W"]
    hidden: Bool[Tensor, "B H W"] | None = None


HIDDEN = 0.85  # the gray level of what was not seen
GAP = 0.08  # between images, in heights of an image
LETTER = 0.068  # inches, of a caption


def draw_versions(versions: dict[str, Version], *, caption: str = "") -> Figure:
    """A grid of images: a row per version, a column per image.

    Args:
        caption: shown below; it is wrapped.
    """
    images = next(iter(versions.values())).images
    height, width = images.shape[-2:]
    side = 1.3
    across = side * len(images) * width / height + 0.3
    caption = textwrap.fill(caption, max(20, int(across / LETTER)))
    size = (max(across, 20 * LETTER), (side + 0.1) * len(versions) + 0.2 + 0.14 * len(caption.splitlines()))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(versions), 1, squeeze=False)[:, 0]  # laying out an axis per image takes longer
    step = width + GAP * height
    for axis, (title, version) in zip(rows, versions.items(), strict=True):
        for place, image in enumerate(version.images):
            shown = shown_pixels(image)
            if version.hidden is not None:
                shown = np.where(version.hidden[place].numpy()[..., None], HIDDEN, shown)
            axis.imshow(shown, interpolation="nearest", extent=(place * step, place * step + width, height, 0))
        axis.set(xticks=[], yticks=[], xlim=(0, len(images) * step - GAP * height), ylim=(height, 0))
        axis.spines[:].set_visible(False)
        axis.set_ylabel(title, fontsize=10)
    if caption:
        figure.supxlabel(caption, fontsize=8)
    return figure


def shown_pixels(image: UInt8[Tensor, "C H W"] | Float[Tensor, "C H W"]) -> np.ndarray:
    """An image for matplotlib, in [0, 1]; only the first three channels. White is 255 in uint8 and else 1."""
    color = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    shown = color.permute(1, 2, 0).to(torch.float32)
    return shown.numpy() / 255 if image.dtype == torch.uint8 else shown.clamp(0, 1).numpy()


def draw_loss(training: Points, held_out: Points, *, title: str, blind: float | None = None) -> Figure:
    """The loss against optimizer steps, on training and on held-out images.

    Args:
        blind: the loss of a prediction that ignores the image, as a line to compare with.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(*training, linewidth=1, alpha=0.8, label="training images")
    if held_out[0]:
        axis.plot(*held_out, marker="o", markersize=3, label="held-out images")
    if blind is not None:
        axis.axhline(blind, color="0.5", linewidth=1, linestyle="--", label="blind prediction")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def draw_dependencies(dependence: Float[Tensor, "N N"], allowed: Bool[Tensor, "N N"], *, title: str) -> Figure:
    """The units that each prediction depends on, and those that its plan allows; forbidden ones in red.

    Args:
        dependence: of the row's prediction on the column's pixels, relative to the row's largest; NaN in rows
            that are not predicted.
        allowed: True where the plan allows it.
    """
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    strength = np.clip(np.log10(dependence.clamp_min(1e-6).numpy()) / 6 + 1, 0, 1)  # six decades, white to dark
    predicted = ~np.isnan(strength)
    leaks = (dependence > 0).numpy() & ~allowed.numpy()
    color = np.stack([1 - 0.85 * strength, 1 - 0.7 * strength, 1 - 0.45 * strength], axis=-1)
    color[leaks] = np.array([0.85, 0.1, 0.1])
    color[~predicted] = HIDDEN
    left.imshow(color, interpolation="nearest")
    left.set_title(f"{title}: depends on" + (" (red: leaks)" if leaks.any() else ""), fontsize=9)
    plan = np.where(allowed.numpy()[..., None], np.array([0.15, 0.3, 0.55]), np.ones(3))
    plan[~predicted] = HIDDEN
    right.imshow(plan, interpolation="nearest")
    right.set_title("may depend on", fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("pixels of unit")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("prediction of unit (gray: not predicted)")
    return figure
