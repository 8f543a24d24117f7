"""Small tiled backbones of every family that takes tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchcast.backbones import Backbone, Grid, wrap
from patchcast.backbones.tiled import Tiled

NARROW = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": (32, 48)}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", NARROW),
    "pre-norm": ("vit_base_patch32_clip_224", {**NARROW, "patch_size": 16}),
    "registers": ("vit_small_patch14_reg4_dinov2", {**NARROW, "patch_size": 16}),
    "no class token": ("vit_base_patch16_siglip_224", NARROW),
    "any size": ("test_vit", {"img_size": (32, 48), "dynamic_img_size": True}),
    "rotary": ("vit_tiny_patch16_dinov3_qkvb", NARROW),
    "rotary and table": ("eva02_tiny_patch14_224", {**NARROW, "patch_size": 16}),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", NARROW),
    "relative": ("beit_base_patch16_224", NARROW),
    "relative by MLP": ("vit_relpos_base_patch16_clsgap_224", NARROW),
    "naflex": ("naflexvit_base_patch16_gap", NARROW),
}


def tile_backbone(family: str) -> Backbone:
    name, kwargs = FAMILIES[family]
    return wrap(name, **kwargs).eval()


def tiled(family: str = "plain", grid: tuple[int, int] = (2, 3), **kwargs: Any) -> Tiled:
    """All gates open and no parameter at its initial value."""
    torch.manual_seed(0)
    backbone = Tiled(tile_backbone(family), Grid(*grid), **kwargs).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.02))
    return backbone


def canvas_of(images: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Images on canvases that are noise elsewhere."""
    canvas = torch.randn(len(images), len(images[0]), *size)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return {"canvas": canvas, "size": torch.tensor([each.shape[1:] for each in images])}
