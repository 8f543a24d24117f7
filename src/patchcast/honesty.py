"""Two tests of honesty for any method on any backbone: no leak, and the noise floor."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from patchcast.backbones.backbone import ImageBatch, pixels_of, with_pixels
from patchcast.geometry import upsample
from patchcast.modes import eval_mode, evaluating
from patchcast.plans import Plan
from patchcast.pretrainer import Output, Pretrainer, for_each_plan, weighted_mean
from patchcast.targets import patchify, unpatchify

Judged = tuple[Bool[Tensor, "B N"], Bool[Tensor, "B P"]]

FLOOR = 0.97
"""As a share of the variance: an honest loss stays above it (by chance it can reach 0.99)."""


@dataclass(frozen=True)
class Leak:
    """How much predictions changed with pixels that they may not use (`worst`) and that they may (`allowed`)."""

    worst: float
    allowed: float

    @property
    def honest(self) -> bool:
        """True if forbidden pixels change nothing and allowed pixels change something: a constant proves nothing."""
        return self.worst == 0.0 and self.allowed > 0.0


@torch.no_grad()
def no_leak(pretrainer: Pretrainer, images: ImageBatch, plan: Plan, *, limit: int | None = None) -> Leak:
    """Replace all pixels that a prediction may not use: it must not change at all. With the others replaced it should.

    `plan.may_use()` says what a prediction may use, from the method's definition. Predictions of weight zero are
    skipped: they are not trained. The pretrainer runs in eval mode; its mode is restored.

    Args:
        limit: maximum number of groups of predictions to test, evenly spaced, if each may use different units; None
            for all.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import aim
    >>> pretrainer = aim(wrap("test_vit", img_size=48), head_depth=1)
    >>> images = torch.randn(2, 3, 48, 48)
    >>> no_leak(pretrainer, images, pretrainer.draw(images)).honest
    True
    """
    with evaluating(pretrainer):
        before = pretrainer(images, plan).predictions
        allowed = without_own(plan)
        images = for_each_plan(images, plan)
        counts = torch.ones(before.shape[:3], dtype=torch.bool) if plan.weight is None else plan.weight.cpu() > 0
        # A seed of its own: noise equal to the images, which tests draw from a seed as well, would change nothing.
        pixels = pixels_of(images)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(41)).to(pixels)
        worst, moved = 0.0, 0.0
        for group in range(before.shape[1]):
            # Predictions that may use the same units are tested in one pass: masked methods need one, causal ones P.
            for may_use, these in _spread(_groups(allowed[:, group]), limit):
                counted = these & counts[:, group]
                if counted.any():
                    # The same change must not affect predictions that may use none of these pixels (earlier ones).
                    still = counts[:, group] & ~(allowed[:, group] & ~may_use[:, None]).any(dim=-1).cpu()
                    worst = max(worst, _movement(pretrainer, images, noise, plan, ~may_use, before, group, still))
                    moved = max(moved, _movement(pretrainer, images, noise, plan, may_use, before, group, counted))
    return Leak(worst, moved)


def without_own(plan: Plan) -> Bool[Tensor, "B G P N"]:
    """`may_use`; but whatever a plan says of itself, no prediction may use the unit that it predicts, unless the plan
    declares that this unit is seen."""
    may_use = plan.may_use()
    own = torch.zeros_like(may_use) if plan.is_shown is None else may_use & plan.is_shown[..., None]
    return torch.where(own, may_use, may_use.scatter(-1, plan.predict[..., None], False))


def _groups(allowed: Bool[Tensor, "B P N"]) -> list[Judged]:
    """Predictions grouped by what they may use: (what, which)."""
    if bool((allowed == allowed[:, :1]).all()):
        return [(allowed[:, 0], torch.ones(allowed.shape[:2], dtype=torch.bool))]
    one = torch.eye(allowed.shape[1], dtype=torch.bool)
    return [(allowed[:, p], one[p].expand(len(allowed), -1)) for p in range(allowed.shape[1])]


def _spread(groups: list[Judged], limit: int | None) -> list[Judged]:
    if limit is None or len(groups) <= limit:
        return groups
    return [groups[int(place)] for place in torch.linspace(0, len(groups) - 1, limit)]


def _movement(
    pretrainer: Pretrainer,
    images: ImageBatch,
    noise: Float[Tensor, "B C H W"],
    plan: Plan,
    changed: Bool[Tensor, "B N"],
    before: Float[Tensor, "B G P T"],
    group: int,
    counted: Bool[Tensor, "B P"],
) -> float:
    """The largest change of a group's weighted predictions when the pixels of the changed units are replaced."""
    pixels = pixels_of(images)
    where = upsample(changed.unflatten(1, plan.grid), (pixels.shape[-2], pixels.shape[-1]))[:, None]
    after = pretrainer(with_pixels(images, torch.where(where, noise, pixels)), plan).predictions
    movement = (after - before)[:, group].abs().amax(dim=-1).cpu()
    return float(movement[counted].max())


@dataclass(frozen=True)
class Verdict:
    """The result of `examine`.

    Attributes:
        leaks: one for each way in which the method was run.
        floor: the loss on noise over the variance; None if the target is learned, and has no floor.
        steps: number of training steps on noise.
    """

    leaks: dict[str, Leak]
    floor: float | None
    steps: int

    @property
    def honest(self) -> bool:
        return all(leak.honest for leak in self.leaks.values()) and (self.floor is None or self.floor > FLOOR)

    def __str__(self) -> str:
        lines = []
        for name, leak in self.leaks.items():
            outcome = "no prediction moved" if leak.worst == 0 else f"LEAK: predictions changed by {leak.worst:.2g}"
            alive = "" if leak.allowed > 0 else "; DEAD: no prediction depends on what it may use either"
            lines.append(f"hidden pixels changed, {name}: {outcome}{alive}")
        if self.floor is None:
            lines.append("noise: not tested, because the target is learned; a loss near 0 would be a collapse")
        else:
            outcome = "stayed at" if self.floor > FLOOR else "LEAK: it fell to"
            lines.append(f"{self.steps} steps of training on noise, the loss: {outcome} {self.floor:.2f} of the floor")
        return "\n".join([*lines, "Honest." if self.honest else "Not honest: the method sees its answers."])


def examine(pretrainer: Pretrainer, *, limit: int | None = 24, seconds: float = 20.0) -> Verdict:
    """Run both tests, the first in every way in which training can run a method: plain, with gradient checkpointing, in
    bf16, and compiled.

    The pretrainer is not changed. Compilation does not generate kernels (torch's `aot_eager`): that takes seconds
    instead of a minute, and only tracing could lose a mask.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import aim
    >>> verdict = examine(aim(wrap("test_vit", img_size=48, depth=2), head_depth=1), limit=4, seconds=1.0)
    >>> verdict.honest, list(verdict.leaks)
    (True, ['as it is', 'with gradient checkpointing', 'in bf16', 'compiled'])

    Args:
        limit: as in `no_leak`; a third of it in the other ways.
        seconds: time for training on noise, with at least twenty steps.
    """
    moved = perturbed(copy.deepcopy(pretrainer))
    backbone = moved.backbone
    generator = torch.Generator().manual_seed(0)
    device = next(moved.parameters()).device
    images = torch.randn(2, backbone.channels, *backbone.image_size, generator=generator).to(device)
    plan = moved.draw(images, torch.Generator().manual_seed(1))
    fewer = None if limit is None else max(2, limit // 3)
    leaks: dict[str, Leak] = {}
    for name, way, running in _ways(moved):
        with running:
            leaks[name] = no_leak(way, images, plan, limit=fewer if leaks else limit)
    if not pretrainer.target.has_noise_floor:
        return Verdict(leaks, None, 0)
    began = time.perf_counter()
    noise_floor(copy.deepcopy(pretrainer), steps=2, batch=4)
    affordable = seconds / (time.perf_counter() - began) * 8  # images
    batch = 16 if affordable > 16 * 40 else 4
    steps = int(min(100, max(20, affordable / batch)))
    return Verdict(leaks, noise_floor(copy.deepcopy(pretrainer), steps=steps, batch=batch), steps)


def _ways(pretrainer: Pretrainer) -> Iterator[tuple[str, Pretrainer, AbstractContextManager[object]]]:
    yield "as it is", pretrainer, nullcontext()
    checkpointed = copy.deepcopy(pretrainer)
    checkpointed.backbone.model.set_grad_checkpointing(True)
    yield "with gradient checkpointing", checkpointed, nullcontext()
    device = next(pretrainer.parameters()).device.type
    yield "in bf16", pretrainer, torch.autocast(device, torch.bfloat16)
    compiled = copy.deepcopy(pretrainer)
    compiled.compile(backend="aot_eager")
    yield "compiled", compiled, nullcontext()


@torch.no_grad()
def perturbed(pretrainer: Pretrainer, seed: int = 0) -> Pretrainer:
    """Add noise to every parameter in place: scales, heads and tables that start at zero would hide leaks."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in pretrainer.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.ndim < 2 else 0.02)
        parameter.add_(noise.to(parameter))
    return pretrainer


def noise_floor(pretrainer: Pretrainer, *, steps: int = 100, batch: int = 16, lr: float = 3e-3, seed: int = 0) -> float:
    """Train on noise that is independent for each unit and new at every step; return the final loss over the variance
    (for codes, over the entropy).

    A unit of noise cannot be predicted from others, so an honest method cannot get below 1 except by chance. A method
    that sees its answer falls toward 0. Each unit is a random mixture of the same four patterns: a hundred steps are
    enough to learn to copy four numbers, but not every pixel. This changes the pretrainer's weights: pass a copy.

    Returns:
        the mean ratio, over the last quarter of the steps, of the loss to that of the best prediction without an image:
        the mean, or how often each code occurs.
    """
    generator = torch.Generator().manual_seed(seed)
    backbone = pretrainer.backbone
    (down, right), grid = backbone.stride, backbone.grid(backbone.image_size)
    patterns = torch.randn(4, down * right * backbone.channels, generator=generator)
    parameters = [parameter for parameter in pretrainer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    ratios = []
    pretrainer.train()
    for step in range(steps):
        units = torch.randn(batch, grid.units, 4, generator=generator) @ patterns
        output = pretrainer(unpatchify(units, grid, backbone.stride).to(parameters[0].device), generator=generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        pretrainer.after_step()
        if step >= steps * 3 // 4:
            blind = pretrainer.loss(pretrainer.target.blind(output.targets), output.targets)
            ratios.append(_loss_of_hidden(pretrainer, output).item() / blind.mean().item())
    return sum(ratios) / len(ratios)


@torch.no_grad()
def blind_loss(pretrainer: Pretrainer, images: Real[Tensor, "B C H W"], *, seed: int = 0) -> float | None:
    """The loss of the best prediction that ignores the image, on these images: what a loss is to be compared with.

    It is about 1 for normalized pixels, and the entropy of the codes for codes.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.methods import mae
    >>> images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> round(blind_loss(mae(wrap("test_vit", img_size=32), decoder_depth=1), images), 2)
    1.0

    Returns:
        None if the target is learned along with the network, so that losses cannot be compared.
    """
    if not pretrainer.target.has_noise_floor:
        return None
    plan = pretrainer.draw(images, torch.Generator().manual_seed(seed))
    targets = pretrainer.targets(images, plan)
    losses = pretrainer.loss(pretrainer.target.blind(targets), targets)
    return float(weighted_mean(losses, plan.weight))


def _loss_of_hidden(pretrainer: Pretrainer, output: Output) -> Float[Tensor, ""]:
    """The loss, without the predictions of units that are seen: those may copy."""
    shown = output.plan.is_shown
    if shown is None:
        return output.loss.detach()
    counts = (~shown).float() if output.plan.weight is None else output.plan.weight * ~shown
    return weighted_mean(pretrainer.loss(output.predictions.detach(), output.targets), counts)


def dependencies(
    pretrainer: Pretrainer, images: Real[Tensor, "B C H W"], plan: Plan
) -> tuple[Float[Tensor, "N N"], Bool[Tensor, "N N"]]:
    """How much each prediction of the first image depends on the pixels of each unit, and on which it may depend.

    Returns:
        the largest gradient of the prediction of the unit of the row with respect to a pixel of the unit of the column,
        relative to the row's largest (NaN in rows that are not predicted); and True where the plan allows it. Images
        that become codes have no gradients; for them it is the change of the prediction when the unit is replaced.
    """
    with eval_mode(pretrainer):
        first = plan.first()
        image = images[:1].float().clone().requires_grad_()
        predictions = pretrainer(image, first).predictions[0].flatten(0, 1)
        predicted = first.predict[0].flatten().tolist()
        counts = [True] * len(predicted) if first.weight is None else (first.weight[0].flatten() > 0).tolist()
        units = plan.grid.units
        strength = torch.full((units, units), torch.nan)
        allowed = torch.zeros(units, units, dtype=torch.bool)
        may_use = without_own(first)[0].flatten(0, 1).cpu()
        direction = torch.randn(predictions.shape[-1], generator=torch.Generator().manual_seed(0)).to(predictions)
        along = predictions @ direction
        has_gradients = torch.autograd.grad(along.sum(), image, retain_graph=True, allow_unused=True)[0] is not None
        moved = None if has_gradients else _moved(pretrainer, image.detach(), first, direction, along.detach())
        for row, (unit, counted) in enumerate(zip(predicted, counts, strict=True)):
            if counted:
                if moved is None:
                    (slope,) = torch.autograd.grad(along[row], image, retain_graph=True)
                    column = patchify(slope, pretrainer.backbone.stride)[0].abs().amax(dim=-1).cpu()
                else:
                    column = moved[row]
                strength[unit] = column / column.max().clamp_min(1e-30)
                allowed[unit] = may_use[row]
    return strength, allowed


@torch.no_grad()
def _moved(
    pretrainer: Pretrainer,
    image: Float[Tensor, "1 C H W"],
    plan: Plan,
    direction: Float[Tensor, " T"],
    before: Float[Tensor, " P"],
) -> Float[Tensor, "P N"]:
    """How much each prediction changes along a direction when the pixels of each unit are replaced in turn."""
    # Its own seed: noise equal to the image, as in some tests, would change nothing.
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(41)).to(image)
    columns = []
    for only in torch.eye(plan.grid.units, dtype=torch.bool, device=image.device):
        where = upsample(only.view(1, *plan.grid), (image.shape[-2], image.shape[-1]))[:, None]
        after = pretrainer(torch.where(where, noise, image), plan).predictions[0].flatten(0, 1) @ direction
        columns.append((after - before).abs().cpu())
    return torch.stack(columns, dim=1)
