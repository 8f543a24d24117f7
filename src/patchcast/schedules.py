"""Learning-rate schedules."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: float) -> float:
    """The learning rate at a step as a share of its peak.

    >>> [round(warmup_cosine(step, steps=100, warmup=0.1), 3) for step in (0, 9, 10, 55, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
