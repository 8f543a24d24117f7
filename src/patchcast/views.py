"""Views: how a backbone sees exactly the units that a plan makes visible."""

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
    """The features that a view returns.

    Attributes:
        prefix: features of class and register tokens.
        units: features of units.
        at: index of the unit of each row of `units`; None for all units, row by row.
        is_valid: False where a row (prefix tokens first) is padding; None if none is.
    """

    grid: Grid
    prefix: Float[Tensor, "B R D"]
    units: Float[Tensor, "B V D"]
    at: Int[Tensor, "B V"] | None = None
    is_valid: Bool[Tensor, "B L"] | None = None


class View(nn.Module, Generic[PlanT]):
    """`(backbone, images, plan) -> Context`.

    Attributes:
        needs: the capability that the backbone must have.
        plans: the kind of plan that it works with.
        holds_hidden: whether its context has a feature for hidden units, so that a head can read there.
        separates_by_attention: whether only attention separates units, so that the stem must not mix their pixels.
    """

    needs: Capability
    plans: type[PlanT]
    holds_hidden: bool
    separates_by_attention: bool = False

    def forward(self, backbone: Backbone, images: ImageBatch, plan: PlanT) -> Context:
        raise NotImplementedError


class Drop(View[MaskPlan]):
    """The backbone runs on the visible units only (MAE, I-JEPA).

    If stems overlap (Hiera), hidden pixels are blanked first: they would reach visible tokens.

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
    """The backbone runs on every unit, with the attention mask of the plan's order (AIM)."""

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
    """The backbone runs on every unit, shifted by one position after a start token, so that all units are predicted
    (ImageGPT): the feature at a unit's position depends on the units before it, and not on the unit itself."""

    needs = "shift"
    plans = StartPlan
    holds_hidden = True
    separates_by_attention = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: StartPlan) -> Context:
        tokens = backbone.embed(images)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Replace(View[MaskPlan]):
    """The backbone runs on every unit, and a learned mask token replaces the hidden ones (SimMIM, BEiT).

    Hidden pixels are blanked too: in overlapping stems they would reach the tokens of neighboring units.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.plans import RandomMask
    >>> backbone = wrap("test_vit", img_size=64)
    >>> context = Replace(backbone.embed_width)(backbone, torch.rand(2, 3, 64, 64), RandomMask(0.5)(Grid(4, 4), 2))
    >>> context.units.shape
    torch.Size([2, 16, 64])

    Args:
        embed_width: channels of the mask token: `backbone.embed_width`.
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
    """The backbone runs on every unit, and zeros replace the hidden ones (ImageGPT's masked objective).

    Hidden units have only their positions, and no mask token is learned."""

    needs = "replace"
    plans = MaskPlan
    holds_hidden = True

    def forward(self, backbone: Backbone, images: ImageBatch, plan: MaskPlan) -> Context:
        tokens = backbone.embed(images, is_hidden=plan.is_hidden)
        prefix, units = backbone.split(backbone.forward_stages(tokens), tokens)
        return Context(plan.grid, prefix, units, is_valid=backbone.validity(tokens))


class Paint(View[MaskPlan]):
    """The backbone runs on images whose hidden units are painted over in the mean color. This works with any model.

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
    """`Replace` if the backbone takes mask tokens, else `Paint` (ConvNeXt, ResNet).

    >>> from patchcast.backbones import wrap
    >>> replace_or_paint(wrap("test_vit"))
    Replace()
    """
    return Replace(backbone.embed_width) if "replace" in backbone.can else Paint()


def read(context: Context, units: Int[Tensor, "B G P"]) -> Float[Tensor, "B G P D"]:
    """The features of the given units, from a context that holds all units."""
    if context.at is not None:
        raise ValueError("this context holds visible units only; a head cannot read at hidden ones")
    return take(context.units, units)
