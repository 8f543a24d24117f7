"""Several objectives over one pass of the backbone: pixels and the features of a teacher together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, ImageBatch
from patchcast.losses import Loss, squared
from patchcast.plans import Plan
from patchcast.predictors import Predictor
from patchcast.targets import Pixels, Target
from patchcast.views import Context


@dataclass(frozen=True)
class Objective:
    """A predictor, its target and loss, and the weight of the loss in a sum.

    Raises:
        ValueError: if the weight is not a positive number.
    """

    predictor: Predictor
    target: Target
    loss: Loss
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of an objective is a number above 0; got {self.weight}")


def sum_of(**objectives: Objective) -> dict[str, Any]:
    """Predictor, target and loss of a `Pretrainer` with several objectives: `Pretrainer(..., **sum_of(...))`.

    All objectives share the plan, the view and one forward pass of the backbone. The loss is the weighted sum of their
    losses; `Output.losses` has the unweighted losses by name. Predictions are concatenated in the last dimension, so
    that one honesty test covers all objectives.

    >>> from patchcast import Decoder, Drop, FrozenFeatures, Pixels, Pretrainer, RandomMask, smooth_l1, squared, wrap
    >>> _ = torch.manual_seed(0)
    >>> student, teacher = wrap("test_vit", img_size=64), wrap("test_resnet", img_size=64)
    >>> def decoder(outputs):
    ...     embed, head = nn.Linear(student.width, 32), nn.Linear(32, outputs)
    ...     return Decoder(32, grid=student.grid(student.image_size), depth=1, heads=1, embed=embed, head=head)
    >>> pixels, features = Pixels(student.stride, channels=3), FrozenFeatures(teacher, student.stride, blocks=(2,))
    >>> parts = sum_of(
    ...     pixels=Objective(decoder(pixels.outputs), pixels, squared),
    ...     teacher=Objective(decoder(features.outputs), features, smooth_l1, weight=0.5),
    ... )
    >>> output = Pretrainer(student, plan=RandomMask(0.5), view=Drop(), **parts)(torch.randn(2, 3, 64, 64))
    >>> list(output.losses), output.predictions.shape[-1] == pixels.outputs + features.outputs
    (['pixels', 'teacher'], True)

    Args:
        objectives: by name. To use one decoder for all, give its head as many outputs as `Targets` has, and pass
            `Targets` and `SumOfLosses` to the `Pretrainer` yourself.
    Raises:
        ValueError: if there are no objectives, or the predictors take plans of different kinds.
    """
    targets = Targets({name: objective.target for name, objective in objectives.items()})
    return {
        "predictor": Predictors({name: objective.predictor for name, objective in objectives.items()}),
        "target": targets,
        "loss": SumOfLosses(
            {name: (objective.loss, objective.weight) for name, objective in objectives.items()}, targets
        ),
    }


class Targets(Target):
    """Several targets, concatenated in the last dimension.

    Pictures show the first target that can be drawn.

    >>> from patchcast.targets import Pixels
    >>> target = Targets({"raw": Pixels((2, 2), channels=1, normalize=False), "contrast": Pixels((2, 2), channels=1)})
    >>> target.outputs, target(torch.rand(1, 1, 4, 4)).shape
    (8, torch.Size([1, 4, 8]))
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        super().__init__()
        if not targets:
            raise ValueError("give at least one objective, by name: sum_of(pixels=Objective(...))")
        self.targets = nn.ModuleDict(targets)
        self.outputs = sum(target.outputs for target in targets.values())
        self.has_noise_floor = all(target.has_noise_floor for target in targets.values())
        self.drawn = next((name for name, target in targets.items() if target.is_drawn), None)
        self.is_drawn = self.drawn is not None
        self.from_image = targets[self.drawn].from_image if self.drawn is not None else ""

    @property
    def each(self) -> dict[str, Target]:
        return dict(self.targets.items())  # type: ignore[arg-type]  # a ModuleDict does not say of what

    @property
    def values(self) -> int:
        return sum(target.values for target in self.each.values())

    @property
    def follows(self) -> bool:
        return any(target.follows for target in self.each.values())

    def forward(self, images: ImageBatch) -> Num[Tensor, "B N T"]:
        found = [target(images) for target in self.each.values()]
        # At least fp32: codes up to 16 million are exact in it, and not in bf16.
        kind = torch.float64 if any(target.dtype == torch.float64 for target in found) else torch.float32
        return torch.cat([target.to(kind) for target in found], dim=-1)

    def to_pixels(
        self, predictions: Float[Tensor, "B N T"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        if self.drawn is None:
            return super().to_pixels(predictions, images)
        return self.each[self.drawn].to_pixels(self.split_predictions(predictions)[self.drawn], images)

    def blind(self, targets: Num[Tensor, "B G P T"]) -> Float[Tensor, "B G P K"]:
        parts = self.split(targets)
        return torch.cat([target.blind(parts[name]).float() for name, target in self.each.items()], dim=-1)

    def block_modules(self) -> list[nn.Module]:
        return [block for target in self.each.values() for block in target.block_modules()]

    def update(self, backbone: Backbone) -> None:
        for target in self.each.values():
            target.update(backbone)

    def split(self, targets: Num[Tensor, "*B T"]) -> dict[str, Num[Tensor, "*B _"]]:
        """The inverse of `forward`'s concatenation; codes become integers again."""
        outputs = {name: target.outputs for name, target in self.each.items()}
        return _of_kind(targets, outputs, {name: target.values for name, target in self.each.items()})

    def split_predictions(self, predictions: Float[Tensor, "*B T"]) -> dict[str, Float[Tensor, "*B _"]]:
        """The predictions for each target, by name."""
        return _parts(predictions, {name: target.outputs for name, target in self.each.items()})


class Predictors(Predictor):
    """Several predictors with the same context; their predictions are concatenated in the last dimension."""

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        super().__init__()
        kinds = {predictor.plans for predictor in predictors.values()}
        narrowest = [kind for kind in kinds if all(issubclass(kind, other) for other in kinds)]
        if not narrowest:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(f"objectives share one plan, and these predictors take different kinds: {names}")
        self.predictors = nn.ModuleDict(predictors)
        self.plans = narrowest[0]
        self.reads_hidden = any(predictor.reads_hidden for predictor in predictors.values())
        self.reads_prefix = any(predictor.reads_prefix for predictor in predictors.values())

    def block_modules(self) -> list[nn.Module]:
        parts: list[Any] = [*self.predictors.values()]
        return [block for predictor in parts for block in predictor.block_modules()]

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        return torch.cat([predictor(context, plan) for predictor in self.predictors.values()], dim=-1)


class SumOfLosses:
    """The weighted sum of losses, each on its own part of the predictions and targets.

    >>> from patchcast.losses import absolute, squared
    >>> from patchcast.targets import Pixels
    >>> targets = Targets({"raw": Pixels((1, 2), channels=1), "other": Pixels((1, 2), channels=1)})
    >>> loss = SumOfLosses({"raw": (squared, 1.0), "other": (absolute, 10.0)}, targets)
    >>> loss(torch.zeros(1, 1, 1, 4), torch.tensor([[[[1.0, 3.0, 2.0, 2.0]]]])).item()
    25.0

    Args:
        losses: (loss, weight) by the name of the target.
        targets: defines which part belongs to which loss.
    Raises:
        ValueError: if the names or their order differ from the targets'.
    """

    def __init__(self, losses: Mapping[str, tuple[Any, float]], targets: Targets) -> None:
        if list(losses) != list(targets.each):
            raise ValueError(f"a loss for each target, in their order: {list(targets.each)}; got {list(losses)}")
        self.losses = dict(losses)
        self.outputs = {name: target.outputs for name, target in targets.each.items()}
        self.values = {name: target.values for name, target in targets.each.items()}

    def each(self, prediction: Float[Tensor, "B G P T"], target: Tensor) -> dict[str, Float[Tensor, "B G P"]]:
        """The unweighted losses, by name."""
        predictions, wanted = _parts(prediction, self.outputs), _of_kind(target, self.outputs, self.values)
        return {name: loss(predictions[name], wanted[name]) for name, (loss, _) in self.losses.items()}

    def join(self, losses: Mapping[str, Float[Tensor, "*B"]]) -> Float[Tensor, "*B"]:
        """Their weighted sum."""
        return torch.stack([losses[name] * weight for name, (_, weight) in self.losses.items()]).sum(dim=0)

    def __call__(self, prediction: Float[Tensor, "B G P T"], target: Tensor) -> Float[Tensor, "B G P"]:
        return self.join(self.each(prediction, target))


def and_pixels(teacher: Target, loss: Loss, backbone: Backbone, weight: float) -> tuple[Target, Loss]:
    """A teacher's features and, unless the weight is 0, normalized pixels with them, for one predictor; and the loss.

    >>> from patchcast import EMAFeatures, smooth_l1, wrap
    >>> backbone = wrap("test_vit", img_size=32)
    >>> target, loss = and_pixels(EMAFeatures(backbone), smooth_l1, backbone, 0.5)
    >>> target.outputs == backbone.width + 3 * 16 * 16
    True

    Args:
        weight: of the squared error of pixels; that of the teacher's loss is 1.
    Raises:
        ValueError: if the weight is negative or not a number.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"pixel_weight is a number of 0 or more; got {weight}")
    if weight == 0:
        return teacher, loss
    pixels = Pixels(backbone.stride, channels=backbone.channels, normalize=True)
    targets = Targets({"features": teacher, "pixels": pixels})
    return targets, SumOfLosses({"features": (loss, 1.0), "pixels": (squared, weight)}, targets)


def _parts(joined: Num[Tensor, "*B T"], widths: Mapping[str, int]) -> dict[str, Num[Tensor, "*B _"]]:
    return dict(zip(widths, joined.split(list(widths.values()), dim=-1), strict=True))


def _of_kind(
    joined: Num[Tensor, "*B T"], outputs: Mapping[str, int], values: Mapping[str, int]
) -> dict[str, Num[Tensor, "*B _"]]:
    """The targets by name; codes, which have fewer values than logits, become integers again."""
    parts = _parts(joined, values)
    return {name: part if values[name] == outputs[name] else part.long() for name, part in parts.items()}
