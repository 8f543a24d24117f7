"""Plans: what may be seen, and what is to be predicted."""

from patchcast.plans.base import MaskPlan, OrderPlan, Plan, Planner
from patchcast.plans.blocks import BlockMask, InverseBlockMask, MultiBlock
from patchcast.plans.masks import GridMask, RandomMask
from patchcast.plans.orders import FixedOrder, RandomOrder, RasterOrder

__all__ = [
    "BlockMask",
    "FixedOrder",
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
]
