"""Plans: which units are visible, and which are predicted."""

from patchcast.plans.block_masks import BlockMask, InverseBlockMask, MultiBlock
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
from patchcast.plans.per_image import draw_each
from patchcast.plans.plan import MaskPlan, OrderPlan, Plan, Planner, StartPlan
from patchcast.plans.random_masks import GridMask, RandomMask, SeenToo

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
    "SeenToo",
    "StartPlan",
    "coarse_to_fine",
    "draw_each",
    "hilbert",
    "raster",
    "snake",
]
