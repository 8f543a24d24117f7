"""A network of timm with a classifier: what fine-tuning trains is what `timm.create_model` loads again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from timm.layers import AttentionPoolLatent
from timm.models import VisionTransformer
from torch import nn

from patchcast.backbones import Backbone

Head = Literal["linear", "attentive"]


def classifier(backbone: Backbone, classes: int, *, head: Head = "linear", seed: int = 0) -> nn.Module:
    """A copy of the backbone's model of timm, with a new head for `classes` classes.

    A plain vision transformer that reads its class token takes the mean over its units instead: generative pretraining
    trains the units, and probes measure that mean. Other models keep their own pooling. A linear head starts at zero.

    >>> from patchcast.backbones import wrap
    >>> model = classifier(wrap("test_vit", img_size=32), classes=10)
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.global_pool
    (torch.Size([2, 10]), 'avg')

    Args:
        head: "attentive" is timm's attention pooling (`global_pool="map"`), for plain vision transformers.
        seed: of the new weights.
    Raises:
        ValueError: if timm cannot hold the model, or the head does not go with it.
    """
    model: Any = backbone.model
    if not callable(getattr(model, "reset_classifier", None)):
        raise ValueError(
            f"{backbone.name} is no model of timm with a classifier, and is not fine-tuned by this command"
        )
    model = copy.deepcopy(model)
    is_plain = type(model) is VisionTransformer
    if head == "attentive" and not is_plain:
        raise ValueError(f"--head attentive needs a plain vision transformer of timm; {backbone.name} takes linear")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if head == "attentive":
            model.reset_classifier(classes)
            block = model.blocks[0]
            model.attn_pool = AttentionPoolLatent(
                model.embed_dim,
                num_heads=block.attn.num_heads,
                mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
                norm_layer=type(model.norm) if isinstance(model.norm, nn.LayerNorm) else nn.LayerNorm,
                act_layer=type(block.mlp.act),
            )
            model.global_pool = "map"
        elif is_plain and model.global_pool == "token":
            model.reset_classifier(classes, global_pool="avg")
        else:
            model.reset_classifier(classes)
    for layer in last_layers(model):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    model.requires_grad_(True)
    return model


def last_layers(model: Any) -> list[Any]:
    """The layers that give the logits; distilled models have two."""
    layers = model.get_classifier()
    return list(layers) if isinstance(layers, (tuple, list)) else [layers]


def head_parameters(model: Any) -> Iterator[nn.Parameter]:
    """The parameters that stay trainable on a frozen backbone: the last layers, and attention pooling."""
    for layer in last_layers(model):
        yield from layer.parameters()
    if type(model) is VisionTransformer and model.attn_pool is not None:
        yield from model.attn_pool.parameters()


def freeze(model: nn.Module) -> None:
    """Leave only the head trainable."""
    model.requires_grad_(False)
    for parameter in head_parameters(model):
        parameter.requires_grad_(True)
