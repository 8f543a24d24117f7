"""Small tiled backbones of every family that takes tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchcast.backbones import Backbone, Grid, wrap
from patchcast.backbones.tiled import Tiled
from tests.backbones.zoo import SEQUENCES, sequence

FAMILIES = [*SEQUENCES, "any size"]


def tile_backbone(family: str) -> Backbone:
    if family == "any size":
        return wrap("test_vit", img_size=(32, 48), dynamic_img_size=True).eval()
    return sequence(family, img_size=(32, 48), patch_size=16).eval()


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
