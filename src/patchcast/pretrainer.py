"""`Pretrainer` runs a method: plan, view, predictor, target and loss over a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Num, Real, Shaped
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, CannotError, ImageBatch, pixels_of
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.geometry import take
from patchcast.losses import Loss
from patchcast.modes import evaluating
from patchcast.objectives import SumOfLosses
from patchcast.plans import Plan, Planner, draw_each
from patchcast.predictors import Predictor
from patchcast.targets import Target
from patchcast.views import View


@dataclass
class Output:
    """The output of a `Pretrainer`.

    Attributes:
        loss: the weighted mean over all predictions; computed in train and eval mode.
        predictions: of the units in `plan.predict`; one row per plan, so several per image if the plan has them.
        targets: of the same units.
        plan: which units were visible and predicted.
        losses: of each objective by name, without its weight, if there are several (`sum_of`); without gradients.
    """

    loss: Float[Tensor, ""]
    predictions: Float[Tensor, "R G P T"]
    targets: Tensor
    plan: Plan
    _backbone: Backbone = field(repr=False)
    _images: ImageBatch = field(repr=False)
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    @cached_property
    def embedding(self) -> Float[Tensor, "B D"]:
        """The pooled feature of the whole, unmasked images, which probes use.

        The same in train and eval mode, and without gradients. It is computed on first access in an extra forward pass,
        because the training pass sees only what the plan shows.
        """
        return embedding_of(self._backbone, self._images)


def embedding_of(backbone: Backbone, images: ImageBatch, readout: Readout = DEFAULT_READOUT) -> Float[Tensor, "B D"]:
    """`backbone.pool` in eval mode and without gradients; restores the mode of every module."""
    with evaluating(backbone):
        return backbone.pool(images, readout)


class Pretrainer(nn.Module):
    """A method over a backbone, as a plain module for any training loop. Call `after_step` after each optimizer step.

    >>> import timm
    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import mae
    >>> pretrainer = mae(wrap(timm.create_model("test_vit")), decoder_width=64, decoder_depth=1)
    >>> output = pretrainer(torch.randn(2, 3, 160, 160))
    >>> output.predictions.shape, output.embedding.shape
    (torch.Size([2, 1, 75, 768]), torch.Size([2, 128]))

    Args:
        plan: draws which units are visible and which are predicted.
        view: runs the backbone on the visible units.
        predictor: from the view's features to predictions.
        target: what is predicted.
        loss: `(prediction, target) -> one number per prediction`.
        repeat: plans per image in train mode (one in eval mode). The target is computed once per image, so a teacher
            runs once for all of them (Baevski et al. 2023, section 3).
    Raises:
        CannotError: if the backbone cannot do what the view needs, or the predictor reads features that the view does
            not provide.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        plan: Planner,
        view: View[Any],
        predictor: Predictor,
        target: Target,
        loss: Loss,
        repeat: int = 1,
    ) -> None:
        super().__init__()
        if repeat < 1:
            raise ValueError(f"repeat is the number of plans per image, 1 or more; got {repeat}")
        if view.needs not in backbone.can:
            raise CannotError(backbone.cannot(view.needs))
        if view.separates_by_attention and not backbone.pixels_stay_in_unit:
            raise CannotError(
                f"{type(view).__name__} would leak: the stem of {backbone.name} lets pixels through to neighboring "
                f"units, which no attention mask undoes; it can {', '.join(sorted(backbone.can - {view.needs}))}"
            )
        if predictor.reads_hidden and not view.holds_hidden:
            raise CannotError(
                f"{type(predictor).__name__} reads at hidden units, which {type(view).__name__} leaves out; "
                "use a Decoder, or a view that keeps them (Replace, Attend)"
            )
        drawn = plan(backbone.grid(backbone.image_size), 1, torch.Generator())
        if not isinstance(drawn, view.plans):
            raise CannotError(
                f"{type(view).__name__} shows a {view.plans.__name__}; {plan} draws a {type(drawn).__name__}"
            )
        if not isinstance(drawn, predictor.plans):
            raise CannotError(
                f"{type(predictor).__name__} predicts from a {predictor.plans.__name__}; "
                f"{plan} draws a {type(drawn).__name__}"
            )
        self.backbone, self.plan, self.view = backbone, plan, view
        self.predictor, self.target, self.loss = predictor, target, loss
        self.repeat = repeat
        self._weight_version, self._target_version = 0, 0  # for `_check_after_step`, as the two below
        self._has_gradient, self._forgotten = False, 0

    def forward(
        self,
        images: ImageBatch,
        plan: Plan | None = None,
        *,
        generator: torch.Generator | None = None,
        unit_weight: Float[Tensor, "B N"] | None = None,
    ) -> Output:
        """Compute predictions and loss. `plan` is drawn (from a CPU generator) unless given.

        A plan may have several rows per image: those of the first image, then those of the second, and so on.

        Args:
            unit_weight: how much each unit of each image counts in the loss, 0 or more, on top of the plan's weights: 0
                where there are no data (`valid_share`). A batch of which nothing counts has a loss of 0.
        Raises:
            ValueError: if `unit_weight` has another shape, or a weight is negative or NaN (looked at on the CPU only: a
                GPU would have to wait).
        """
        self.backbone.check_dtype(images)
        if plan is None:
            plan = self.draw(images, generator, each=self.repeat if self.training else 1)
        targets = self.targets(images, plan)  # before the activations that are stored for the backward pass
        weight = plan.weight
        if unit_weight is not None:
            weight = _weight_at(plan, unit_weight, len(pixels_of(images)))
            targets = targets.masked_fill((weight == 0)[..., None], 0)  # what has no data may be NaN
        context = self.view(self.backbone, for_each_plan(images, plan), plan)
        predictions = self.predictor(context, plan).float()
        mean = weighted_mean if unit_weight is None else _mean_of_any
        parts: dict[str, Tensor] = {}
        if isinstance(self.loss, SumOfLosses):
            losses = self.loss.each(predictions, targets)
            parts = {name: mean(part.detach(), weight) for name, part in losses.items()}
            loss = mean(self.loss.join(losses), weight)
        else:
            loss = mean(self.loss(predictions, targets), weight)
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._check_after_step(loss)
        return Output(loss, predictions, targets, plan, self.backbone, images, parts)

    def after_step(self) -> None:
        """Call this after each optimizer step: it updates a teacher that follows the backbone."""
        self.target.update(self.backbone)
        self._has_gradient, self._forgotten = False, 0

    def _check_after_step(self, loss: Float[Tensor, ""]) -> None:
        """Warn once if a second optimizer step was taken and nobody called `after_step`.

        A step was taken if there were gradients, and now there are none or the weights' version has changed (a fused
        optimizer does not change the version). This never waits for a GPU, and accumulating gradients is not a step.
        """
        if not self.target.follows or self._forgotten > 1:
            return
        weights = [weight for weight in self.backbone.parameters() if weight.requires_grad]
        version = _version_of(weights)
        followed = _version_of([*self.target.parameters(), *self.target.buffers()])
        if followed != self._target_version:  # a loop that calls `target.update` itself
            self._target_version, self._has_gradient, self._forgotten = followed, False, 0
        if self._has_gradient and (version != self._weight_version or all(weight.grad is None for weight in weights)):
            self._has_gradient = False
            self._forgotten += 1
        self._weight_version = version
        if loss.requires_grad:
            loss.register_hook(self._note_gradient)
        if self._forgotten > 1:
            warnings.warn(
                f"the weights are trained, but {type(self.target).__name__} does not follow: call "
                "pretrainer.after_step() after each optimizer step",
                stacklevel=4,
            )

    def _note_gradient(self, _: Tensor) -> None:
        self._has_gradient = True

    @torch.no_grad()
    def targets(self, images: ImageBatch, plan: Plan) -> Num[Tensor, "R G P T"]:
        """The targets of this plan's predictions."""
        every = self.target(images)
        if every.shape[1] != plan.grid.units:
            raise ValueError(f"the target gives {every.shape[1]} rows for the {plan.grid.units} units of {plan.grid}")
        return take(_for_each_plan(every, plan), plan.predict)

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters that no prediction depends on. Freeze them, or DDP waits for their gradients."""
        for_prefix = [] if self.predictor.reads_prefix else self.backbone.prefix_only()
        backbone = self.backbone
        return backbone.parameters_in([*backbone.unused(), *backbone.not_in_features(), *for_prefix])

    @torch.compiler.disable  # dynamo cannot trace random numbers for a dynamic batch size
    def draw(self, images: ImageBatch, generator: torch.Generator | None = None, *, each: int = 1) -> Plan:
        """Draw a plan for these images, on their device. Images of different sizes are planned separately.

        Args:
            each: plans per image.
        """
        pixels, grid = pixels_of(images), self.backbone.grid(images)
        grids = self.backbone.grid_of_each(images)
        if grids is None:
            return self.plan(grid, len(pixels) * each, generator).to(pixels.device)
        grids = [one for one in grids for _ in range(each)]
        return draw_each(self.plan, grids, grid, generator).to(pixels.device)

    def draw_piece(self, images: ImageBatch, piece: int, pieces: int) -> tuple[Plan, float]:
        """Draw the plan of the whole batch and return the rows of this micro-batch, one of several equal `pieces`.

        Returns:
            the plan, and a factor for the loss, such that the mean over all micro-batches is the weighted mean over all
            predictions of the batch. If images differ in size, each micro-batch is planned separately, and the factor
            is 1.
        """
        if pieces == 1 or self.backbone.grid_of_each(images) is not None:
            return self.draw(images, each=self.repeat), 1.0
        pixels = pixels_of(images)
        rows = len(pixels) * self.repeat
        whole = self.plan(self.backbone.grid(images), rows * pieces, None)
        plan = whole.rows(slice(piece * rows, (piece + 1) * rows))
        share = 1.0
        if plan.weight is not None and whole.weight is not None:
            share = float(plan.weight.sum() / whole.weight.sum() * pieces)
        return plan.to(pixels.device), share


def _version_of(tensors: Sequence[Tensor]) -> int:
    """A number that increases when a tensor is changed in place: the sum of torch's version counters."""
    return sum(tensor._version for tensor in tensors if not tensor.is_inference())


def weighted_mean(losses: Float[Tensor, "B G P"], weight: Float[Tensor, "B G P"] | None) -> Float[Tensor, ""]:
    """The weighted mean over all predictions of the batch, not the mean of per-image means."""
    if weight is None:
        return losses.mean()
    return (losses * weight).sum() / weight.sum()


def for_each_plan(images: ImageBatch, plan: Plan) -> Real[Tensor, "R C H W"] | Mapping[str, Any]:
    """Repeat each image for each of its rows in the plan."""
    if len(pixels_of(images)) == len(plan.predict):
        return images
    if isinstance(images, Tensor):
        return _for_each_plan(images, plan)
    return {name: _for_each_plan(value, plan) for name, value in images.items()}


def _for_each_plan(rows: Shaped[Tensor, "B ..."], plan: Plan) -> Shaped[Tensor, "R ..."]:
    times, rest = divmod(len(plan.predict), len(rows))
    if rest or not times:
        raise ValueError(f"a plan has the same number of rows for each image; got {len(plan.predict)} for {len(rows)}")
    return rows if times == 1 else rows.repeat_interleave(times, dim=0)


def _weight_at(plan: Plan, unit_weight: Float[Tensor, "B N"], images: int) -> Float[Tensor, "R G P"]:
    """How much each prediction counts by the plan and by its unit."""
    rows = (images, plan.grid.units)
    if unit_weight.shape != rows:
        raise ValueError(
            f"unit_weight has a weight for each unit of each image, {rows} on {plan.grid}; "
            f"got {tuple(unit_weight.shape)}"
        )
    if unit_weight.device.type == "cpu" and not bool((is_fine := unit_weight >= 0).all()):
        raise ValueError(f"weights of units are 0 or more; got {float(unit_weight[~is_fine][0])}")
    weight = (
        _for_each_plan(unit_weight, plan)[:, None].float().expand(-1, plan.predict.shape[1], -1).gather(2, plan.predict)
    )
    return weight if plan.weight is None else weight * plan.weight


def _mean_of_any(losses: Float[Tensor, "B G P"], weight: Float[Tensor, "B G P"] | None) -> Float[Tensor, ""]:
    """`weighted_mean`, or 0 if all weights are 0."""
    if weight is None:
        return losses.mean()
    total = weight.sum()
    return (losses * weight).sum() / torch.where(total > 0, total, 1.0)
