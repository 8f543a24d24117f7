"""Plans: what may be seen, and what is to be predicted."""

from patchcast.plans.base import MaskPlan, OrderPlan, Plan, Planner, StartPlan
from patchcast.plans.blocks import BlockMask, InverseBlockMask, MultiBlock
from patchcast.plans.each import draw_each
from patchcast.plans.masks import GridMask, RandomMask
from patchcast.plans.orders import (
    FixedOrder,
    FromStart,
    RandomOrder,
    RasterOrder,
    coarse_to_fine,
    hilbert,
    raster,
    snake,
)

__all__ = [
    "BlockMask",
    "FixedOrder",
    "FromStart",
    "GridMask",
    "InverseBlockMask",
    "MaskPlan",
    "MultiBlock",
    "OrderPlan",
    "Plan",
    "Planner",
    "RandomMask",
    "RandomOrder",
    "RasterOrder",
    "StartPlan",
    "coarse_to_fine",
    "draw_each",
    "hilbert",
    "raster",
    "snake",
]
