"""Schedules over the steps of a run: of the learning rate, and of the size of images."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise


def warmup_cosine(step: int, *, steps: int, warmup: float) -> float:
    """The learning rate at a step as a share of its peak.

    >>> [round(warmup_cosine(step, steps=100, warmup=0.1), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def image_sizes(words: Sequence[str]) -> list[tuple[float, tuple[int, int]]]:
    """Sizes of images, (height, width), each with the share of a run's steps from which on it is used.

    >>> image_sizes(["32@0", "48x64@0.5"])
    [(0.0, (32, 32)), (0.5, (48, 64))]

    Raises:
        ValueError: if a size is not written like this, the first does not begin at 0, or they do not grow.
    """
    found = []
    for word in words:
        parts = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?@(\d*\.?\d+)", word)
        if parts is None:
            raise ValueError(f"sizes are written PIXELS@SHARE, such as 64@0 96@0.5, or 64x96@0; got {word!r}")
        height, width, share = parts.groups()
        found.append((float(share), (int(height), int(width or height))))
    if len(found) < 2:
        raise ValueError(f"sizes are two or more; for one, give image_size; got {' '.join(words) or 'none'}")
    shares = [share for share, _ in found]
    if shares[0] != 0 or shares[-1] >= 1 or any(one >= other for one, other in pairwise(shares)):
        raise ValueError(f"sizes begin at 0 and go on at larger shares of the steps, below 1; got {' '.join(words)}")
    for (_, before), (_, after) in pairwise(found):
        if before == after or before[0] > after[0] or before[1] > after[1]:
            raise ValueError(f"sizes grow during a run; got {' '.join(words)}")
    return found
