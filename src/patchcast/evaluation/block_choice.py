"""The choice of blocks for a probe: the best features of generative networks are often in middle blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchcast.data.splits import stratified_split
from patchcast.evaluation.features import Features
from patchcast.evaluation.linear import logistic_path

SIX = 6
"""Number of blocks that AIM's probe averages (El-Nouby et al. 2024, section 5)."""

BLOCK_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def last_blocks(depth: int, size: int = SIX) -> tuple[int, ...]:
    """The last `size` blocks, or all if there are fewer.

    >>> last_blocks(12), last_blocks(4)
    ((6, 7, 8, 9, 10, 11), (0, 1, 2, 3))
    """
    return tuple(range(max(0, depth - size), depth))


def best_blocks(
    layers: Mapping[int, Features], *, size: int = SIX, held_out: float = 0.2, seed: int = 0
) -> tuple[tuple[int, ...], dict[tuple[int, ...], float]]:
    """The `size` consecutive blocks whose mean is classified best, and the accuracy of every choice.

    Measured by a linear classifier of the mean over units, on held-out training images: the attentive probe itself
    would take minutes for each choice. Test images are not used. Of equal choices, the deepest is taken.

    >>> labels = torch.arange(400) % 2
    >>> sharp, blurred = labels[:, None] + 0.1 * torch.randn(400, 3), torch.randn(400, 3)
    >>> layers = {block: Features(x, labels) for block, x in enumerate([blurred, sharp, sharp, blurred])}
    >>> best_blocks(layers, size=2)[0]
    (1, 2)

    Args:
        layers: training features of every block, from `extract_layers`; blocks of one width.
        held_out: share of each class that is held out for the choice.
        seed: of the held-out draw.
    Raises:
        ValueError: if the blocks differ in width, or no class has two images.
    """
    widths = {features.x.shape[1] for features in layers.values()}
    if len(widths) > 1:
        raise ValueError(
            f"only blocks of the same width can be averaged; these have {', '.join(map(str, sorted(widths)))}"
        )
    labels = next(iter(layers.values())).labels
    fit, held = stratified_split(labels, held_out, generator=torch.Generator().manual_seed(seed))
    accuracies = {}
    for first in range(max(1, len(layers) - size + 1)):
        blocks = tuple(range(first, min(first + size, len(layers))))
        mean = Features(torch.stack([layers[block].x for block in blocks]).mean(dim=0), labels)
        judge = mean.take(held)
        accuracies[blocks] = max(probe.accuracy(judge) for probe in logistic_path(mean.take(fit), BLOCK_STRENGTHS))
    return max(accuracies, key=lambda blocks: (accuracies[blocks], blocks)), accuracies
