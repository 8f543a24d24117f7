"""Plans: what may be seen, and what is to be predicted."""

from patchcast.plans.base import MaskPlan, OrderPlan, Plan, Planner
from patchcast.plans.masks import RandomMask
from patchcast.plans.orders import FixedOrder, RandomOrder, RasterOrder

__all__ = ["FixedOrder", "MaskPlan", "OrderPlan", "Plan", "Planner", "RandomMask", "RandomOrder", "RasterOrder"]
