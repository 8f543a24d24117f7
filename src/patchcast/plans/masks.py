"""Plans that hide units here and there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchcast.backbones.base import Grid
from patchcast.plans.base import MaskPlan


@dataclass(frozen=True)
class RandomMask:
    """Hide a random `ratio` of the units of each image (He et al. 2022, section 3).

    >>> plan = RandomMask(0.75)(Grid(14, 14), 2, torch.Generator().manual_seed(0))
    >>> plan.visible.shape, plan.predict.shape
    (torch.Size([2, 49]), torch.Size([2, 1, 147]))

    Args:
        ratio: share of units hidden, in (0, 1); `round(N * ratio)` are hidden in every image.
    Raises:
        ValueError: if `ratio` is not in (0, 1), or if no unit or every unit of the grid would be hidden.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"the mask ratio must lie between 0 and 1, both excluded; got {self.ratio}")

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> MaskPlan:
        hidden = round(grid.units * self.ratio)
        if not 0 < hidden < grid.units:
            raise ValueError(f"a mask ratio of {self.ratio} hides {hidden} of the {grid.units} units of a {grid} grid")
        shuffled = torch.rand(batch, grid.units, generator=generator).argsort(dim=1)
        # Sorted, because memory is read in order and pictures of plans are easier to follow; no method cares.
        visible, masked = shuffled[:, hidden:].sort(dim=1).values, shuffled[:, :hidden].sort(dim=1).values
        return MaskPlan(grid, visible, masked[:, None])
