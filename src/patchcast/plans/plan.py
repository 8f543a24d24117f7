"""The kinds of plans. A plan holds indices of units and does not depend on models or pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from patchcast.geometry import Grid

PlanT = TypeVar("PlanT", bound="Plan")


@dataclass(frozen=True)
class Plan:
    """Which units are visible and which are predicted, for a batch of images on one grid."""

    grid: Grid

    @property
    def predict(self) -> Int[Tensor, "B G P"]:
        """The units to predict: G groups of P for each image."""
        raise NotImplementedError

    @property
    def source(self) -> Int[Tensor, "B G P"]:
        """The units at whose positions the predictions are made."""
        raise NotImplementedError

    @property
    def weight(self) -> Float[Tensor, "B G P"] | None:
        """The weight of each prediction in the loss; None if all are equal."""
        raise NotImplementedError

    def may_use(self) -> Bool[Tensor, "B G P N"]:
        """True where the prediction may depend on the unit; checked by `patchcast.honesty.no_leak`."""
        raise NotImplementedError

    @property
    def is_shown(self) -> Bool[Tensor, "B G P"] | None:
        """True where the unit that is predicted is seen as well; None where none is, as in almost every plan."""
        return None

    def first(self: PlanT) -> PlanT:
        """The plan of the first image only."""
        return self.rows(slice(1))

    def rows(self: PlanT, images: slice) -> PlanT:
        """The plan of some of the images."""
        return self._map(lambda tensor: tensor[images])

    def to(self: PlanT, device: torch.device | str) -> PlanT:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self: PlanT, change: Callable[[Tensor], Tensor]) -> PlanT:
        """The plan with `change` applied to every tensor."""
        changed: dict[str, Any] = {
            one.name: change(value) for one in fields(self) if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class MaskPlan(Plan):
    """Some units are visible; others, in one or several groups, are predicted from them.

    A unit may be neither: it is hidden and not predicted (outside of I-JEPA's blocks, or padding). If images of a batch
    have different numbers of units, rows are padded with units that they contain already.

    >>> plan = MaskPlan(Grid(2, 2), torch.tensor([[0, 3]]), torch.tensor([[[1, 2]]]))
    >>> plan.is_hidden.int().tolist()
    [[[0, 1], [1, 0]]]

    Attributes:
        is_seen: False where an entry of `visible` is padding; None if none is.
        is_predicted: False where an entry of `hidden` is padding; None if none is.
        seen_weight: weight in the loss of visible units, which are then predicted too, after the hidden units of each
            group; None: they are not predicted.
    """

    visible: Int[Tensor, "B V"]
    hidden: Int[Tensor, "B G P"]
    is_seen: Bool[Tensor, "B V"] | None = None
    is_predicted: Bool[Tensor, "B G P"] | None = None
    seen_weight: float | None = None

    @property
    def predict(self) -> Int[Tensor, "B G P"]:
        return self.hidden if self.seen_weight is None else self._with_seen(self.hidden, self.visible)

    @property
    def source(self) -> Int[Tensor, "B G P"]:
        return self.predict

    @property
    def is_asked(self) -> Bool[Tensor, "B G P"] | None:
        """False where an entry of `predict` is padding; None if none is."""
        if self.seen_weight is None or (self.is_predicted is None and self.is_seen is None):
            return self.is_predicted
        hidden = torch.ones_like(self.hidden, dtype=torch.bool) if self.is_predicted is None else self.is_predicted
        seen = torch.ones_like(self.visible, dtype=torch.bool) if self.is_seen is None else self.is_seen
        return self._with_seen(hidden, seen)

    @property
    def is_shown(self) -> Bool[Tensor, "B G P"] | None:
        if self.seen_weight is None:
            return None
        return self._with_seen(torch.zeros_like(self.hidden, dtype=torch.bool), torch.ones_like(self.visible).bool())

    @property
    def weight(self) -> Float[Tensor, "B G P"] | None:
        asked = self.is_asked
        if self.seen_weight is None:
            return None if asked is None else asked.to(torch.float32)
        hidden, seen = torch.ones_like(self.hidden, dtype=torch.float32), torch.ones_like(self.visible).float()
        weight = self._with_seen(hidden, seen * self.seen_weight)
        return weight if asked is None else weight * asked

    def _with_seen(self, hidden: Shaped[Tensor, "B G P"], seen: Shaped[Tensor, "B V"]) -> Shaped[Tensor, "B G _"]:
        """Values of the hidden units of each group, and after them those of the seen ones."""
        return torch.cat([hidden, seen[:, None].expand(-1, hidden.shape[1], -1)], dim=2)

    @property
    def is_hidden(self) -> Bool[Tensor, "B rows cols"]:
        """True where a unit may not be seen."""
        hidden = torch.ones(len(self.visible), self.grid.units, dtype=torch.bool, device=self.visible.device)
        return hidden.scatter(1, self.visible, False).unflatten(1, self.grid)

    def may_use(self) -> Bool[Tensor, "B G P N"]:
        return (~self.is_hidden).flatten(1)[:, None, None, :].expand(*self.predict.shape, -1)


@dataclass(frozen=True)
class OrderPlan(Plan):
    """Units are predicted one after the other, each from those before it (El-Nouby et al. 2024, section 3.1).

    The feature of unit `order[i]` predicts the unit `order[i + 1]`. The first `prefix` units of the order attend to one
    another, and are not predicted.

    >>> plan = OrderPlan(Grid(1, 4), torch.tensor([[0, 1, 2, 3]]), torch.tensor([2]))
    >>> plan.source.tolist(), plan.predict.tolist(), plan.weight.tolist()
    ([[[0, 1, 2]]], [[[1, 2, 3]]], [[[0.0, 1.0, 1.0]]])
    >>> plan.can_see(prefix_tokens=0)[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]

    Attributes:
        order: a permutation of the units for each image.
        prefix: the prefix length of each image, 0 to N - 1.
        is_raster: the order is row by row without prefixes, so a plain causal mask can be used, with fused kernels.
        length: number of units of each image if it differs; later units in the order are padding.
    """

    order: Int[Tensor, "B N"]
    prefix: Int[Tensor, " B"]
    is_raster: bool = False
    length: Int[Tensor, " B"] | None = None

    @property
    def predict(self) -> Int[Tensor, "B G P"]:
        return self.order[:, None, 1:]

    @property
    def source(self) -> Int[Tensor, "B G P"]:
        return self.order[:, None, :-1]

    @property
    def weight(self) -> Float[Tensor, "B G P"]:
        place = torch.arange(1, self.grid.units, device=self.order.device)
        counts = place >= self.prefix[:, None]
        if self.length is not None:
            counts = counts & (place < self.length[:, None])
        return counts[:, None].to(torch.float32)

    @property
    def rank(self) -> Int[Tensor, "B N"]:
        """The position of each unit in the order: the inverse of `order`."""
        return self.order.argsort(dim=1)

    def can_see(self, prefix_tokens: int) -> Bool[Tensor, "B 1 L L"]:
        """The attention mask, prefix tokens first.

        Class and register tokens may attend only to the given units. Every unit attends to them, so anything else that
        they saw would leak.
        """
        first = torch.arange(prefix_tokens, device=self.order.device).expand(len(self.order), -1)
        rank = torch.cat([first, prefix_tokens + self.rank], dim=1)
        given = torch.where(self.prefix > 0, prefix_tokens + self.prefix, 0)
        earlier = rank[:, None, :] <= rank[:, :, None]
        return (earlier | (rank < given[:, None])[:, None, :])[:, None]

    def may_use(self) -> Bool[Tensor, "B G P N"]:
        # Written from the definition and not from can_see, because it is used to test can_see.
        turn = torch.empty_like(self.order).scatter(
            1, self.order, torch.arange(self.grid.units).to(self.order).expand_as(self.order)
        )
        at = turn.gather(1, self.source[:, 0])
        before = turn[:, None, :] <= at[:, :, None]
        return (before | (turn < self.prefix[:, None])[:, None, :])[:, None]


@dataclass(frozen=True)
class StartPlan(Plan):
    """Every unit is predicted from those before it, the first from a start token only (Chen et al. 2020, section 2.1).

    The feature of a unit predicts that unit, because the input is shifted by one position.

    >>> plan = StartPlan(Grid(1, 3), torch.tensor([[0, 1, 2]]))
    >>> plan.predict.tolist(), plan.may_use()[0, 0].int().tolist()
    ([[[0, 1, 2]]], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])

    Attributes:
        order: the units, row by row.
    """

    order: Int[Tensor, "B N"]

    @property
    def predict(self) -> Int[Tensor, "B G P"]:
        return self.order[:, None]

    @property
    def source(self) -> Int[Tensor, "B G P"]:
        return self.order[:, None]

    @property
    def weight(self) -> None:
        return None

    def may_use(self) -> Bool[Tensor, "B G P N"]:
        everything = torch.ones(len(self.order), 1, self.grid.units, self.grid.units, dtype=torch.bool)
        return everything.tril(diagonal=-1).to(self.order.device)


@runtime_checkable
class Planner(Protocol):
    """Draws plans: `RandomMask(0.75)`, `RasterOrder()`. Always on the CPU, so that a seed gives the same plans."""

    def __call__(self, grid: Grid, batch: int, generator: torch.Generator | None = None) -> Plan: ...
