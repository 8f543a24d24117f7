"""One plan for images of different sizes: each image is planned by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from patchcast.geometry import Grid
from patchcast.plans.plan import MaskPlan, OrderPlan, Plan, Planner


def draw_each(planner: Planner, grids: Sequence[Grid], canvas: Grid, generator: torch.Generator | None = None) -> Plan:
    """A plan on a `canvas` grid for images of different sizes in its upper left corner.

    Padding is neither visible nor predicted. Images of the same size are drawn together, in the order of their sizes'
    first appearance.

    >>> from patchcast.plans import RandomMask
    >>> plan = draw_each(RandomMask(0.5), [Grid(1, 2), Grid(2, 2)], Grid(2, 2), torch.Generator().manual_seed(0))
    >>> plan.is_predicted.tolist(), sorted([*plan.visible[0, :1].tolist(), *plan.hidden[0, 0, :1].tolist()])
    ([[[True, False]], [[True, True]]], [0, 1])

    Args:
        planner: `RandomMask(0.75)`, `RasterOrder()`: any that draws a `MaskPlan` or an `OrderPlan`.
        grids: the units of each image.
        canvas: a grid at least as large as each of them.
    Raises:
        ValueError: if an image has no unit or does not fit, or the planner draws another kind of plan.
    """
    for grid in grids:
        if not 0 < grid.rows <= canvas.rows or not 0 < grid.cols <= canvas.cols:
            raise ValueError(f"an image of {grid} units does not fit on a canvas of {canvas}, or is empty")
    if all(grid == canvas for grid in grids):
        return planner(canvas, len(grids), generator)
    rows: dict[Grid, list[int]] = {}
    for image, grid in enumerate(grids):
        rows.setdefault(grid, []).append(image)
    drawn = [(images, grid, planner(grid, len(images), generator)) for grid, images in rows.items()]
    masks = [(images, grid, plan) for images, grid, plan in drawn if isinstance(plan, MaskPlan)]
    orders = [(images, grid, plan) for images, grid, plan in drawn if isinstance(plan, OrderPlan)]
    if len(masks) == len(drawn):
        seen, is_seen = _join([(images, _move(plan.visible, grid, canvas)) for images, grid, plan in masks])
        groups = [
            _join([(i, _move(plan.hidden[:, g], grid, canvas)) for i, grid, plan in masks])
            for g in range(masks[0][2].hidden.shape[1])
        ]
        hidden, is_predicted = (torch.stack(parts, dim=1) for parts in zip(*groups, strict=True))
        return MaskPlan(canvas, seen, hidden, is_seen, is_predicted, masks[0][2].seen_weight)
    if len(orders) == len(drawn):
        order, _ = _join([(images, _all(_move(plan.order, grid, canvas), canvas)) for images, grid, plan in orders])
        prefix, _ = _join([(images, plan.prefix[:, None]) for images, _, plan in orders])
        return OrderPlan(canvas, order, prefix[:, 0], length=torch.tensor([grid.units for grid in grids]))
    raise ValueError(f"{planner} draws a {type(drawn[0][2]).__name__}, which images of different sizes cannot have")


def _move(units: Int[Tensor, "n K"], grid: Grid, canvas: Grid) -> Int[Tensor, "n K"]:
    """Indices of units of a grid as those of the canvas."""
    return units // grid.cols * canvas.cols + units % grid.cols


def _all(order: Int[Tensor, "n K"], canvas: Grid) -> Int[Tensor, "n N"]:
    """The order, followed by the units that are not in it."""
    turn = torch.full((len(order), canvas.units), canvas.units)
    turn.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return turn.argsort(dim=1, stable=True)


def _join(
    parts: list[tuple[list[int], Int[Tensor, "_ _"]]],
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """The rows of all images in their order, padded with their first entry; and False where an entry is padding."""
    batch, longest = sum(len(images) for images, _ in parts), max(units.shape[1] for _, units in parts)
    joined = torch.zeros(batch, longest, dtype=torch.long)
    own = torch.zeros(batch, longest, dtype=torch.bool)
    for images, units in parts:
        joined[images] = units[:, :1]
        joined[images, : units.shape[1]] = units
        own[images, : units.shape[1]] = True
    return joined, own
