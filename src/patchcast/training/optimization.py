"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.tiled import Tiled
from patchcast.predictors import Predictor
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import OptimizerName
from patchcast.schedules import warmup_cosine
from patchcast.training.muon import Muon

NEVER_DECAYED = ("pos_embed", "position", "token", "rel_pos")


@dataclass(frozen=True)
class Optimization:
    """AdamW or Muon, with linear warm-up and cosine decay to zero.

    Attributes:
        lr: the peak learning rate.
        optimizer: adamw for all parameters, or muon for the matrices of blocks and adamw for the rest.
        betas: of AdamW.
        weight_decay: of matrices; norms, biases, positions and tokens are never decayed.
        warmup: share of the steps over which the learning rate rises from zero.
        clip: largest norm of the gradient; None for no clipping.
        layer_decay: of the rate, from each of the backbone's blocks to the one before it.
        freeze_first: steps in which the backbone's rate is zero; its warm-up begins after them.
        ema: decay of averaged weights; None for no average.
    """

    lr: float
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float | None = None
    layer_decay: float = 1.0
    freeze_first: int = 0
    ema: float | None = None

    def rate(self, step: int, steps: int, group: Mapping[str, Any]) -> float:
        """The learning rate of a group of `make_optimizer` at a step, counted from 0."""
        first = self.freeze_first if group.get("is_backbone") else 0
        if step < first:
            return 0.0
        return (
            self.lr * warmup_cosine(step - first, steps=steps - first, warmup=self.warmup) * group.get("lr_scale", 1.0)
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay; norms, biases, positions and tokens are without.

    >>> groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.05)
    >>> [(group["weight_decay"], len(group["params"])) for group in groups]
    [(0.05, 1), (0.0, 3)]
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own_name = name.rpartition(".")[2]  # a module may be a "token_mixer", and is no token
            spare = parameter.ndim < 2 or any(word in own_name for word in NEVER_DECAYED)
            (spared if spare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def layered_groups(pretrainer: Pretrainer, settings: Optimization) -> list[dict[str, Any]]:
    """The two groups for each layer of the backbone and for the rest, with `lr_scale` and `is_backbone`.

    Raises:
        ValueError: if a layer decay is wanted and timm does not tell the model's blocks apart.
    """
    layers = layer_numbers(pretrainer.backbone)
    if settings.layer_decay != 1.0 and not layers:
        raise ValueError(f"timm does not tell the blocks of {pretrainer.backbone.name} apart: use layer_decay 1")
    own = {name: number for name, number in layers.items() if settings.layer_decay != 1.0}
    last, in_backbone = max(layers.values(), default=0), {*pretrainer.backbone.parameters()}
    groups: dict[tuple[bool, int, float], dict[str, Any]] = {}
    for group in parameter_groups(pretrainer, settings.weight_decay):
        for parameter in group["params"]:
            layer, is_backbone = own.get(parameter, last), parameter in in_backbone
            groups.setdefault(
                (is_backbone, layer, group["weight_decay"]),
                {
                    "params": [],
                    "weight_decay": group["weight_decay"],
                    "lr_scale": settings.layer_decay ** (last - layer),
                    "is_backbone": is_backbone,
                },
            )["params"].append(parameter)
    return list(groups.values())


def layer_numbers(backbone: Backbone) -> dict[nn.Parameter, int]:
    """The layer of each parameter that a backbone uses, by timm's `group_matcher`; empty if it has none.

    The stem is layer 0, the first block layer 1; the norm after the last block belongs to it.

    >>> from patchcast.backbones import wrap
    >>> sorted(set(layer_numbers(wrap("test_vit", depth=2, img_size=32)).values()))
    [0, 1, 2]
    """
    backbone = backbone.tile if isinstance(backbone, Tiled) else backbone
    model: Any = backbone.model
    matcher = getattr(model, "group_matcher", None)  # torchvision's models and three classes of timm have none
    if matcher is None:
        return {}
    numbers = group_parameters(model, matcher(coarse=False), reverse=True)
    unused = tuple(backbone.unused())
    return {
        parameter: numbers[name]
        for name, parameter in model.named_parameters()
        if name not in unused and not name.startswith(tuple(f"{each}." for each in unused))
    }


def freeze_blocks(backbone: Backbone, count: int) -> None:
    """Leave the first `count` blocks of a backbone, and the layers before them, as they are.

    Raises:
        ValueError: if timm does not tell its blocks apart, or it has no more than `count`.
    """
    layers = layer_numbers(backbone)
    if not layers:
        raise ValueError(f"timm does not tell the blocks of {backbone.name} apart, which freeze_blocks={count} needs")
    blocks = max(layers.values())
    if count >= blocks:
        raise ValueError(f"freeze_blocks leaves one block at least to train; {backbone.name} has {blocks}, got {count}")
    for parameter, layer in layers.items():
        if layer <= count:
            parameter.requires_grad_(False)


SMALLEST_SIDE = 8
"""Of matrices that Muon moves. Smaller ones mix heads, or map positions to biases."""


def block_matrices(part: Backbone | Predictor) -> set[nn.Parameter]:
    """The matrices that Muon moves: weights of linear layers in the blocks of a backbone or a predictor.

    Patches, tables of positions, heads and the kernels of convolutions are none.
    """
    return {
        parameter
        for block in part.block_modules()
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and name.endswith("weight") and min(parameter.shape) >= SMALLEST_SIDE
    }


def muon_matrices(pretrainer: Pretrainer) -> set[nn.Parameter]:
    """Those of backbone and predictor that are trained."""
    both = block_matrices(pretrainer.backbone) | block_matrices(pretrainer.predictor)
    return {matrix for matrix in both if matrix.requires_grad}


def make_optimizer(
    model: Pretrainer, settings: Optimization, dtype: torch.dtype = torch.float32
) -> torch.optim.AdamW | Muon:
    """AdamW in its fused form, one kernel instead of one for every parameter; or Muon with it.

    Args:
        dtype: in which Muon orthogonalizes.
    """
    is_plain = settings.layer_decay == 1.0 and not settings.freeze_first
    groups = parameter_groups(model, settings.weight_decay) if is_plain else layered_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    split = by_kind(groups, muon_matrices(model))
    return Muon(split, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, dtype=dtype)


def by_kind(groups: list[dict[str, Any]], matrices: Collection[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of parameters, each split into those that Muon moves and all others (`is_matrix`)."""
    split = []
    for group in groups:
        for is_matrix in (True, False):
            if parameters := [each for each in group["params"] if (each in matrices) == is_matrix]:
                split.append({**group, "params": parameters, "is_matrix": is_matrix})
    return split
