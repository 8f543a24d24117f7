"""AIM's published networks, as timm's VisionTransformer."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import nn

from patchcast.geometry import Grid
from patchcast.positions import sincos_positions

AIM_SIZES: dict[str, dict[str, int]] = {
    "0.6B": {"embed_dim": 1536, "depth": 24, "num_heads": 12},
    "1B": {"embed_dim": 2048, "depth": 24, "num_heads": 16},
    "3B": {"embed_dim": 3072, "depth": 24, "num_heads": 24},
    "7B": {"embed_dim": 4096, "depth": 32, "num_heads": 32},
}
"""As the paper (El-Nouby et al. 2024) and its code have them: heads are 128 channels wide."""

ARCHITECTURE = "vit_huge_patch14_224"
"""The timm name whose builder is used; `aim_args` overrides the rest."""


def aim_args(size: str) -> dict[str, Any]:
    """The arguments of `timm.create_model("vit_huge_patch14_224", ...)` that make a published network.

    They are plain values, so they can be used as a recipe's `model_args`. There is no class token. Linear layers have
    no biases, except the patch embedding, which also has a norm after it.

    >>> aim_args("1B")["embed_dim"]
    2048

    Raises:
        ValueError: if there is no such size.
    """
    if size not in AIM_SIZES:
        raise ValueError(f"AIM was published as {', '.join(AIM_SIZES)}; got {size!r}")
    return {
        **AIM_SIZES[size],
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "qkv_bias": False,
        "proj_bias": False,
        "norm_layer": "layernorm",
        "embed_norm_layer": "layernorm",
    }


def aim_vit(size: str, **changes: Any) -> VisionTransformer:
    """A published network with its own initialization and fixed sine-cosine positions, for `wrap`.

    >>> with torch.device("meta"):  # shapes only: no memory is taken
    ...     vit = aim_vit("7B")
    >>> f"{sum(p.numel() for p in vit.parameters() if p.requires_grad) / 1e9:.2f} billion"
    '6.45 billion'

    Args:
        size: 0.6B, 1B, 3B or 7B.
        changes: arguments of `timm.create_model` to override, such as `img_size`.
    Raises:
        ValueError: if there is no such size.
    """
    vit: Any = timm.create_model(ARCHITECTURE, **{"num_classes": 0, **aim_args(size), **changes})
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))  # the patches' too, as one matrix
    with torch.no_grad():
        grid = Grid(*vit.patch_embed.grid_size)
        vit.pos_embed.copy_(sincos_positions(grid, vit.embed_dim))
    vit.pos_embed.requires_grad_(False)
    return vit
