"""Nearest neighbors as a picture: the images that a network takes for the most similar ones, before and after."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from patchcast.drawing.figures import shown_pixels

WRONG = "#d1495b"


def draw_neighbors(
    queries: UInt8[Tensor, "Q C H W"],
    labels: Int[Tensor, " Q"],
    neighbors: Mapping[str, tuple[UInt8[Tensor, "Q K C H W"], Int[Tensor, "Q K"]]],
    *,
    caption: str = "",
) -> Figure:
    """A row for each image: itself, and its nearest images by each network; those of another class are framed.

    >>> import torch
    >>> one, several = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 1, 8, 8, dtype=torch.uint8)
    >>> classes = torch.tensor([0, 1])
    >>> figure = draw_neighbors(one, classes, {"before": (several, classes[:, None].expand(2, 3))})
    >>> len(figure.axes)
    10

    Args:
        neighbors: images and their classes, nearest first, by the name of the network.
        caption: shown below.
    """
    count = next(iter(neighbors.values()))[0].shape[1]
    widths = [1.0]
    for _ in neighbors:
        widths += [0.35, *[1.0] * count]
    side = 0.72
    figure = Figure(figsize=(side * sum(widths) + 0.2, side * len(queries) + 0.85))
    grid = figure.subplots(len(queries), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})
    for axes in grid:
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for row, query in enumerate(queries):
        grid[row][0].imshow(shown_pixels(query), interpolation="nearest")
        for place, (images, classes) in enumerate(neighbors.values()):
            first = 2 + place * (count + 1)
            for column in range(count):
                axis = grid[row][first + column]
                axis.imshow(shown_pixels(images[row, column]), interpolation="nearest")
                if classes[row, column] != labels[row]:
                    axis.spines[:].set(visible=True, color=WRONG, linewidth=2.5)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.35 / figure.get_figheight(), wspace=0.08, hspace=0.08)
    figure.subplots_adjust(bottom=0.42 / figure.get_figheight())
    for place, name in enumerate(neighbors):
        left = grid[0][2 + place * (count + 1)].get_position()
        right = grid[0][1 + place * (count + 1) + count].get_position()
        top = 1 - 0.1 / figure.get_figheight()
        figure.text((left.x0 + right.x1) / 2, top, name, ha="center", va="top", fontsize=10)
    figure.text(0.01, 0.1 / figure.get_figheight(), caption, fontsize=8, va="bottom")
    return figure
