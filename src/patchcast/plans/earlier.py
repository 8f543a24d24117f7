"""Plans as they were drawn before December 2026, so that runs started then resume unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patchcast.plans.block_masks import BlockMask, InverseBlockMask, MultiBlock
from patchcast.plans.random_masks import GridMask, RandomMask


def as_before(planner: Any) -> Any:
    """The planner with the earlier rules: hidden units rounded to the nearest number, contexts cut to the smallest.

    >>> from patchcast.geometry import Grid
    >>> [planner(Grid(2, 3), 1).predict.shape[2] for planner in (RandomMask(0.75), as_before(RandomMask(0.75)))]
    [5, 4]
    """
    if isinstance(planner, RandomMask | GridMask | BlockMask | InverseBlockMask):
        return replace(planner, count=hidden_rounded)
    return replace(planner, context_units=None) if isinstance(planner, MultiBlock) else planner


def hidden_rounded(count: int | float, ratio: float) -> int | float:
    return round(count * ratio)
