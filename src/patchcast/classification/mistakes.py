"""Pictures of what a classifier gets wrong: the confusion matrix, and the worst mistakes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from patchcast.classification.classifier_data import ClassifierData
from patchcast.data import Images
from patchcast.drawing.figures import shown_pixels
from patchcast.files import write_figure

MOST_NAMED = 40
"""Classes up to which the confusion matrix names and counts each."""
WORST = 24
"""Maximum number of mistakes in a picture."""


def draw_confusion(counts: Int[np.ndarray, "K K"], names: Sequence[str]) -> Figure:
    """A row for each true class, a column for each predicted one; colors are shares of the true class.

    >>> draw_confusion(np.array([[3, 1], [0, 2]]), ["cat", "dog"]).axes[0].get_xlabel()
    'predicted'
    """
    classes = len(names)
    side = min(14.0, 2.5 + 0.35 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true")
    if classes <= MOST_NAMED:
        short = [textwrap.shorten(name, 24, placeholder="…") or name[:24] for name in names]
        axis.set_xticks(range(classes), short, rotation=90, fontsize=7)
        axis.set_yticks(range(classes), short, fontsize=7)
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6, color=color)
    return figure


def draw_named(images: Sequence[Tensor], captions: Sequence[str], *, columns: int = 6) -> Figure:
    """Images of any size in rows, each with a few lines of text below.

    >>> import torch
    >>> len(draw_named([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 7, ["a"] * 7).axes)
    12
    """
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(shown_pixels(image), interpolation="nearest")
        lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, 26) or [""]]
        axis.set_title("\n".join(lines[:5]), fontsize=7, y=-0.03, pad=0, va="top", parse_math=False)
    return figure


def draw_worst_mistakes(logits: Tensor, labels: Tensor, data: ClassifierData, file: Path) -> None:
    """The test images whose true class got the smallest probability, worst first."""
    images, names = _as_read(data.test), data.names
    shares = logits.softmax(dim=1)
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten()
    worst = wrong[shares[wrong, labels[wrong]].argsort()][:WORST].tolist()
    file.unlink(missing_ok=True)
    if not worst:
        return
    captions = []
    for place in worst:
        guess = int(logits[place].argmax())
        captions.append(f"{names[int(labels[place])]}\nas {names[guess]} ({shares[place, guess]:.0%})")
    write_figure(draw_named([images[place].image for place in worst], captions), file)


def draw_worst_sets(logits: Tensor, targets: Tensor, data: ClassifierData, file: Path) -> None:
    """The test images with the largest loss among those that are not exactly right."""
    images, names = _as_read(data.test), data.names
    loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(dim=1)
    wrong = ((logits >= 0) != targets).any(dim=1).nonzero().flatten()
    worst = wrong[loss[wrong].argsort(descending=True)][:WORST].tolist()
    file.unlink(missing_ok=True)
    if worst:
        said = [
            [", ".join(np.array(names)[row[place].numpy()]) or "none" for row in (targets, logits >= 0)]
            for place in worst
        ]
        write_figure(draw_named([images[place].image for place in worst], [f"{a}\nas {b}" for a, b in said]), file)


def _as_read(images: Images) -> Images:
    """Without the images that evaluation has left out: their places are those of the logits."""
    bad = [image.index for image in images.unreadable]
    return images.subset(np.flatnonzero(~np.isin(images.positions, bad)))
