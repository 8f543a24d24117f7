"""`forward` is the wrapped model's `forward_features`, to the bit: outputs, running statistics, every gradient."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchcast.backbones import Backbone
from tests.backbones.zoo import (
    NAMES,
    WITHOUT_CHECKPOINTING,
    able,
    assert_same,
    flat,
    images_for,
    marked,
    representative,
    small,
)


@pytest.mark.parametrize("name", marked(NAMES))
def test_eval(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))


@pytest.mark.parametrize("name", representative(NAMES))
def test_train(name: str) -> None:
    ours, theirs = in_training(small(name)), in_training(small(name))
    images = images_for(ours)
    torch.manual_seed(0)
    learn(ours(images))
    torch.manual_seed(0)
    learn(theirs.model.forward_features(images))
    assert_same_gradients(ours, theirs)
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("name", representative(NAMES))
def test_what_is_declared_to_be_idle_gets_no_gradient(name: str) -> None:
    backbone = in_training(small(name))
    tokens = backbone.embed(images_for(backbone))
    features = backbone.forward_stages(tokens)
    learn(features, retain_graph=True)
    assert without_gradient(backbone) == names_in(backbone, backbone.unused())
    backbone.zero_grad()
    learn(backbone.split(features, tokens)[1])
    certain = names_in(backbone, [*backbone.unused(), *backbone.not_in_features()])
    idle = certain | names_in(backbone, backbone.prefix_only())
    assert certain <= without_gradient(backbone) <= idle
    # Zeros where units are cut off behind a concatenation with class tokens (or a block was dropped in training).
    assert idle <= {
        name for name, each in backbone.model.named_parameters() if each.grad is None or not each.grad.any()
    }


@pytest.mark.parametrize("name", representative(NAMES))
def test_gradient_checkpointing_with_hidden_units_and_edited_tokens(name: str) -> None:
    plain, recomputed = checkpointed(name)
    for backbone in (plain, recomputed):
        torch.manual_seed(0)
        images = images_for(backbone)
        is_hidden = torch.zeros(len(images), *backbone.grid(images), dtype=torch.bool)
        is_hidden[:, -1] = True
        tokens = backbone.embed(images, is_hidden=is_hidden, mask_token=torch.ones(backbone.embed_width))
        learn(backbone.forward_stages(tokens.with_(x=halved(tokens.x))))
    assert_same_gradients(recomputed, plain)


@pytest.mark.parametrize("name", representative(able("drop")))
def test_gradient_checkpointing_with_dropped_units_and_a_mask(name: str) -> None:
    plain, recomputed = checkpointed(name)
    for backbone in (plain, recomputed):
        torch.manual_seed(0)
        images = images_for(backbone)
        units = torch.arange(4).expand(len(images), -1)
        tokens = backbone.keep(backbone.embed(images), units)
        masks = {}
        if "attend" in backbone.can:
            length = tokens.prefix + units.shape[1]
            masks["can_see"] = torch.ones(length, length, dtype=torch.bool).tril()
        learn(backbone.forward_stages(tokens.with_(x=halved(tokens.x)), **masks))
    assert_same_gradients(recomputed, plain)


def checkpointed(name: str) -> tuple[Backbone, Backbone]:
    """Two copies in training, the second with gradient checkpointing."""
    plain, recomputed = in_training(small(name)), in_training(small(name))
    if type(plain.model).__name__ in WITHOUT_CHECKPOINTING:
        pytest.skip("timm refuses gradient checkpointing here")
    recomputed.model.set_grad_checkpointing()
    return plain, recomputed


def in_training(backbone: Backbone) -> Backbone:
    """A copy in train mode, with dropout wherever the model has a place for it."""
    copy = deepcopy(backbone).train()
    for module in copy.modules():
        if isinstance(module, nn.Dropout) and not module.inplace:  # TNT's would break its own backward
            module.p = 0.1
    return copy


def learn(features: Any, **kwargs: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    loss = sum((each * torch.randn(each.shape, generator=generator)).sum() for each in flat(features))
    loss.backward(**kwargs)


def halved(x: Any) -> Any:
    return x * 0.5 if isinstance(x, Tensor) else type(x)(each * 0.5 for each in x)


def assert_same_gradients(ours: Backbone, theirs: Backbone) -> None:
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    for (name, mine), other in pairs:
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            assert torch.equal(mine.grad, other.grad), name


def without_gradient(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.model.named_parameters() if parameter.grad is None}


def names_in(backbone: Backbone, parts: list[str]) -> set[str]:
    inside = {id(parameter) for parameter in backbone.parameters_in(parts)}
    return {name for name, parameter in backbone.model.named_parameters() if id(parameter) in inside}
