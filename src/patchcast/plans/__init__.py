"""Plans: what may be seen, and what is to be predicted."""

from patchcast.plans.base import MaskPlan, OrderPlan, Plan, Planner
from patchcast.plans.masks import RandomMask
from patchcast.plans.orders import RasterOrder

__all__ = ["MaskPlan", "OrderPlan", "Plan", "Planner", "RandomMask", "RasterOrder"]
