"""Plans that predict the units one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchcast.backbones.base import Grid
from patchcast.plans.base import OrderPlan


@dataclass(frozen=True)
class RasterOrder:
    """Row by row, with a random prefix per image that is given and not scored (El-Nouby et al. 2024, section 3.3).

    >>> plan = RasterOrder()(Grid(4, 4), 2, torch.Generator().manual_seed(0))
    >>> plan.order[0, :5].tolist(), bool((plan.prefix >= 1).all() and (plan.prefix <= 15).all())
    ([0, 1, 2, 3, 4], True)

    Args:
        random_prefix: draw each prefix length uniformly from 1..N-1; otherwise there is none, and the mask is causal.
    Raises:
        ValueError: if the grid has a single unit: there is no next one to predict.
    """

    random_prefix: bool = True

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> OrderPlan:
        if grid.units < 2:
            raise ValueError(f"predicting the next unit needs at least two; the grid is {grid}")
        order = torch.arange(grid.units).expand(batch, -1)
        if not self.random_prefix:
            return OrderPlan(grid, order, torch.zeros(batch, dtype=torch.long), is_raster=True)
        return OrderPlan(grid, order, torch.randint(1, grid.units, (batch,), generator=generator))
