"""Views: how a backbone is made to see what a plan lets it see, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, Capability, ImageBatch
from patchcast.geometry import Grid, take
from patchcast.plans.plan import MaskPlan, OrderPlan, PlanT, StartPlan


@dataclass(frozen=True)
class Context:
    """What the backbone made of what it saw.

    Attributes:
        prefix: features of class and register tokens.
        units: features of the units that it holds.
        at: which unit each row of `units` is; None for all of them, row by row.
        is_valid: False where a row (prefix tokens in front) is padding, which is not to be looked at; None if none is.
    """

    grid: Grid
    prefix: Float[Tensor, "B R D"]
    units: Float[Tensor, "B V D"]
    at: Int[Tensor, "B V"] | None = None
    is_valid: Bool[Tensor, "B L"] | None = None


class View(nn.Module, Generic[PlanT]):
    """`(backbone, images, plan) -> Context`.

    Attributes:
        needs: the capability that it asks of the backbone.
        plans: the kind of plan that it can show.
        holds_hidden: whether its context has a row for units that were not seen, so that a head may read there.
        separates_by_attention: whether units are kept apart by attention alone, so that no stem may mix their pixels.
    """

    needs: Capability
    plans: type[PlanT]
    holds_hidden: bool
    separates_by_attention: bool = False

    def forward(self, backbone: Backbone, images: ImageBatch, plan: PlanT) -> Context:
        raise NotImplementedError


class Drop(View[MaskPlan]):
    """The backbone runs on the visible units alone (MAE, I-JEPA).

    Where stems overlap (Hiera), the pixels of the others are blanked first: visible tokens would hold some of them.

    Args:
        prefix: keep class and register tokens; False drops them too, where the backbone can do without (`keep_rows`).
    """

    needs = "drop"
    plans = MaskPlan
    holds_hidden = False

    def __init__(self, *, prefix: bool = True) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, backbone: Backbone, images: ImageBatch, plan: MaskPlan) -> Context:
        if not backbone.pixels_stay_in_unit:
            images = backbone.blank(images, plan.is_hidden)
        tokens = backbone.embed(images)
        if self.prefix or not backbone.features_prefix:
            tokens = backbone.keep(tokens, plan.visible)
        else:
            tokens = backbone.keep_rows(tokens, plan.visible + tokens.prefix).with_(visible=plan.visible)
        if plan.is_seen is not None:
            tokens = tokens.with_(is_valid=plan.is_seen)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, plan.visible, backbone.validity(tokens))


class Attend(View[OrderPlan]):
    """The backbone runs on every unit, and attention obeys the plan's order (AIM)."""

    needs = "attend"
    plans = OrderPlan
    holds_hidden = True
    separates_by_attention = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: OrderPlan) -> Context:
        tokens = backbone.embed(images)
        if plan.is_raster:
            features = backbone.forward_stages(tokens, is_causal=True)
        else:
            features = backbone.forward_stages(tokens, can_see=plan.can_see(tokens.prefix))
        prefix, units = backbone.split(features, tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Shift(View[StartPlan]):
    """The backbone runs on every unit, each moved on by one place behind a start token, so that all are predicted
    (ImageGPT): at the place of a unit it has seen those before it, and not the unit itself."""

    needs = "shift"
    plans = StartPlan
    holds_hidden = True
    separates_by_attention = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: StartPlan) -> Context:
        tokens = backbone.embed(images)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Replace(View[MaskPlan]):
    """The backbone runs on every unit, with a learnt mask token in the place of those that are hidden (SimMIM, BEiT).

    Their pixels are blanked as well, because in stems that overlap they would reach the neighbours' tokens.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.plans import RandomMask
    >>> backbone = wrap("test_vit", img_size=64)
    >>> context = Replace(backbone.embed_width)(backbone, torch.rand(2, 3, 64, 64), RandomMask(0.5)(Grid(4, 4), 2))
    >>> context.units.shape
    torch.Size([2, 16, 64])

    Args:
        embed_width: channels of a token where the mask token goes in: `backbone.embed_width`.
    """

    needs = "replace"
    plans = MaskPlan
    holds_hidden = True

    def __init__(self, embed_width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(embed_width).normal_(std=0.02))

    def forward(self, backbone: Backbone, images: ImageBatch, plan: MaskPlan) -> Context:
        tokens = backbone.embed(images, is_hidden=plan.is_hidden, mask_token=self.mask_token)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Blank(View[MaskPlan]):
    """The backbone runs on every unit, with zeros in the place of those that are hidden (ImageGPT's masked objective):
    only positions are left there, and no mask token is learnt."""

    needs = "replace"
    plans = MaskPlan
    holds_hidden = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: MaskPlan) -> Context:
        tokens = backbone.embed(images, is_hidden=plan.is_hidden)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Paint(View[MaskPlan]):
    """The backbone sees the image with hidden units painted over, in the mean colour: any model at all can do this.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.plans import RandomMask
    >>> Paint()(wrap("test_vit", img_size=64), torch.rand(2, 3, 64, 64), RandomMask(0.5)(Grid(4, 4), 2)).units.shape
    torch.Size([2, 16, 64])
    """

    needs = "paint"
    plans = MaskPlan
    holds_hidden = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: MaskPlan) -> Context:
        tokens = backbone.embed(backbone.blank(images, plan.is_hidden))
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


def replace_or_paint(backbone: Backbone) -> Replace | Paint:
    """A mask token in the place of hidden units, or where a model is not entered (ConvNeXt, ResNet), paint over them.

    >>> from patchcast.backbones import wrap
    >>> replace_or_paint(wrap("test_vit"))
    Replace()
    """
    return Replace(backbone.embed_width) if "replace" in backbone.can else Paint()


def read(context: Context, units: Int[Tensor, "B G P"]) -> Float[Tensor, "B G P D"]:
    """The features at the place of the given units, of a context that holds them all."""
    if context.at is not None:
        raise ValueError("this context holds only the units that were seen; a head cannot read at hidden ones")
    return take(context.units, units)
