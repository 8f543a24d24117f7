"""Complete images unit by unit from a visible prefix, with AIM on raw pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchcast.backbones.backbone import CannotError
from patchcast.backbones.cached_blocks import CachedBlocks, can_cache
from patchcast.modes import evaluating
from patchcast.plans import OrderPlan, Plan
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels, patchify, unpatchify
from patchcast.views import Context


@torch.no_grad()
def complete_pixels(
    pretrainer: Pretrainer,
    images: Float[Tensor, "B C H W"],
    prefix: int,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Predict all units after the first `prefix` units of the order, each from those before it.

    Every prediction replaces its unit before the next one is made. It is the mean of what could follow and not a
    sample, so completions are smooth. The other pixels of the images are not used.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import aim
    >>> pretrainer = aim(wrap("test_vit", img_size=32, patch_size=8), head_depth=1, normalize=False)
    >>> images = torch.randn(2, 3, 32, 32)
    >>> completed = complete_pixels(pretrainer, images, prefix=8)
    >>> torch.equal(completed[:, :, :16], images[:, :, :16]), torch.equal(completed[:, :, 16:], images[:, :, 16:])
    (True, False)

    With timm's plain blocks, keys and values are cached; other backbones run the whole forward pass for every unit.

    Args:
        pretrainer: of `aim(..., normalize=False)`; runs in eval mode, and its mode is restored.
        images: normalized as in training.
        prefix: number of given units, 1 to N.
        generator: on the CPU, for random orders.
    Raises:
        CannotError: if the method does not predict in order, or its targets are not raw pixels.
        ValueError: if the prefix is not 1 to N.
    """
    target = pretrainer.target
    plan = pretrainer.plan(pretrainer.backbone.grid(images), len(images), generator)
    if not isinstance(plan, OrderPlan):
        raise CannotError(f"only methods that predict in order complete images, such as aim; this one draws {plan}")
    if not isinstance(target, Pixels):
        raise CannotError(f"{type(target).__name__} are not pixels and cannot be drawn; use aim(..., normalize=False)")
    if target.normalize:
        raise CannotError(
            "normalized targets do not contain the mean and contrast of units, so that nothing can be drawn from their "
            "predictions; train with aim(..., normalize=False)"
        )
    if not 1 <= prefix <= plan.grid.units:
        raise ValueError(f"completing needs a prefix of 1 to {plan.grid.units} units; got {prefix}")
    # A model trained without prefixes has never seen units that attend to later ones.
    has_prefix = bool((plan.prefix > 0).all())  # read before the plan moves: a GPU would have to wait
    given = torch.full_like(plan.prefix, prefix if has_prefix else 0)
    plan = OrderPlan(plan.grid, plan.order, given, is_raster=plan.is_raster).to(images.device)

    with evaluating(pretrainer):
        predict_next: NextUnit = (
            CachedForward(pretrainer, plan, is_causal=not has_prefix)
            if can_cache(pretrainer.backbone)
            else FullForward(pretrainer, plan)
        )
        units = patchify(images, target.stride)
        to_come = plan.order[:, prefix:]
        units = units.scatter(1, _rows(to_come, units), 0.0)
        for place in range(prefix, plan.grid.units):
            prediction = predict_next(unpatchify(units, plan.grid, target.stride), place)
            units.scatter_(1, _rows(plan.order[:, place : place + 1], units), prediction.to(units.dtype))
    return unpatchify(units, plan.grid, target.stride)


class NextUnit(Protocol):
    """Predicts the unit `order[place]` of each image from those before it."""

    def __call__(self, images: Float[Tensor, "B C H W"], place: int) -> Float[Tensor, "B 1 T"]: ...


class FullForward:
    """Run the whole forward pass for each prediction: for any backbone that can attend."""

    def __init__(self, pretrainer: Pretrainer, plan: OrderPlan) -> None:
        self.pretrainer, self.plan = pretrainer, plan

    def __call__(self, images: Float[Tensor, "B C H W"], place: int) -> Float[Tensor, "B 1 T"]:
        parts = self.pretrainer
        predictions = parts.predictor(parts.view(parts.backbone, images, self.plan), self.plan)
        return predictions[:, 0, place - 1 : place]


class CachedForward:
    """Run new units only, with cached keys and values of the others.

    Given units attend to one another and to prefix tokens, and each later unit to all before it. So only the first
    piece may need a mask, if the order has no prefix (`is_causal`).
    """

    def __init__(self, pretrainer: Pretrainer, plan: OrderPlan, *, is_causal: bool) -> None:
        self.pretrainer, self.plan, self.is_causal = pretrainer, plan, is_causal
        places = plan.grid.units + pretrainer.backbone.features_prefix
        self.blocks = CachedBlocks(pretrainer.backbone, batch=len(plan.order), places=places)
        self.seen = 0

    def __call__(self, images: Float[Tensor, "B C H W"], place: int) -> Float[Tensor, "B 1 T"]:
        backbone, order = self.pretrainer.backbone, self.plan.order
        tokens = backbone.keep(backbone.embed(images), order[:, self.seen : place])
        is_first = self.seen == 0
        x = tokens.x if is_first else tokens.x[:, tokens.prefix :]
        last = self.blocks.extend(x, is_causal=is_first and self.is_causal)[:, -1:]
        self.seen = place
        # The head reads the feature of the last unit, from a context that holds all units.
        step = Step(self.plan.grid, order[:, None, place - 1 : place], order[:, None, place : place + 1])
        everywhere = last.new_zeros(len(order), self.plan.grid.units, last.shape[-1])
        everywhere.scatter_(1, _rows(step.at[:, 0], everywhere), last)
        return self.pretrainer.predictor(Context(self.plan.grid, last[:, :0], everywhere), step)[:, 0]


@dataclass(frozen=True)
class Step(Plan):
    """One prediction per image: of the next unit, from the feature of the latest."""

    at: Int[Tensor, "B 1 1"]
    following: Int[Tensor, "B 1 1"]

    @property
    def predict(self) -> Int[Tensor, "B 1 1"]:
        return self.following

    @property
    def source(self) -> Int[Tensor, "B 1 1"]:
        return self.at


def _rows(index: Int[Tensor, "B K"], like: Float[Tensor, "B N T"]) -> Int[Tensor, "B K T"]:
    """Expand an index of units for `scatter`."""
    return index[..., None].expand(-1, -1, like.shape[-1])
