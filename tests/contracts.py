"""What any method on any backbone must pass. Add a backbone or a method to the list, and every contract holds it."""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor

from patchcast.honesty import no_leak, noise_floor
from patchcast.pretrainer import Pretrainer


def perturbed(pretrainer: Pretrainer, seed: int = 0) -> Pretrainer:
    """Every parameter moved off its initial value: a table of zeros would hide that it is added in the wrong place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pretrainer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.ndim < 2 else 0.02))
    return pretrainer


def images_for(pretrainer: Pretrainer, batch: int = 2, seed: int = 0) -> Tensor:
    backbone = pretrainer.backbone
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, backbone.channels, *backbone.image_size, generator=generator)


def check_no_leak(pretrainer: Pretrainer) -> None:
    images = images_for(pretrainer)
    leak = no_leak(perturbed(pretrainer), images, pretrainer.draw(images, torch.Generator().manual_seed(1)))
    assert leak.worst == 0.0, f"predictions changed by {leak.worst} when pixels changed that they may not use"
    assert leak.allowed > 0.0, "predictions do not move with pixels that they may use"


def check_noise_floor(pretrainer: Pretrainer) -> None:
    ratio = noise_floor(pretrainer)
    assert ratio > 0.97, f"the loss on noise fell to {ratio:.2f} of the variance: it copies its answer"


def check_gradients(pretrainer: Pretrainer) -> None:
    """Every parameter that is on the path gets a gradient, and those declared unused get none."""
    images = images_for(pretrainer)
    perturbed(pretrainer)(images).loss.backward()
    unused = {id(each) for each in pretrainer.idle_parameters()}
    for name, parameter in pretrainer.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in unused:
            # Zeros where units are cut off behind a concatenation with class tokens.
            is_idle = parameter.grad is None or not parameter.grad.any()
            assert is_idle, f"{name} is declared unused and has a gradient"
        else:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


def check_save_and_load(pretrainer: Pretrainer, fresh: Pretrainer) -> None:
    """Weights go through a file into a fresh pretrainer, which then gives the same numbers."""
    images = images_for(pretrainer)
    perturbed(pretrainer).eval()
    plan = pretrainer.draw(images)
    file = io.BytesIO()
    torch.save(pretrainer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    before, after = pretrainer(images, plan), fresh.eval()(images, plan)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(before.predictions, after.predictions)


def check_modes(pretrainer: Pretrainer) -> None:
    """The embedding is one feature in both modes, the evaluation loss is the loss, and no mode is changed."""
    images = images_for(pretrainer)
    perturbed(pretrainer)
    plan = pretrainer.draw(images)
    pretrainer.train()
    training = pretrainer(images, plan)
    assert torch.equal(training.embedding, pretrainer.eval()(images, plan).embedding)
    assert pretrainer.backbone.training is False
    evaluated = pretrainer(images, plan).loss
    torch.testing.assert_close(evaluated, training.loss)
    assert evaluated > 0
    assert not training.embedding.requires_grad


def check_gradient_checkpointing(pretrainer: Pretrainer) -> None:
    """Checkpointing changes memory, not numbers, plan and mask included."""
    pretrainer = perturbed(pretrainer)
    other = copy.deepcopy(pretrainer)
    other.backbone.model.set_grad_checkpointing(True)
    images = images_for(pretrainer)
    plan = pretrainer.draw(images)
    for each in (pretrainer, other):
        each.train()
        each(images, plan).loss.backward()
    for (name, one), two in zip(pretrainer.named_parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            assert two.grad is not None, name
            assert torch.equal(one.grad, two.grad), name


def golden(pretrainer: Pretrainer) -> float:
    """The loss of fixed weights on fixed images under a fixed plan: only a change of meaning can change it."""
    images = images_for(perturbed(pretrainer))
    pretrainer.eval()
    with torch.no_grad():
        return pretrainer(images, pretrainer.draw(images, torch.Generator().manual_seed(2))).loss.item()
