"""Masks as pictures: indexed PNG files, and colors over the image."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from patchcast.data.transforms import ImagePixels


@cache
def class_colors() -> UInt8[np.ndarray, "256 3"]:
    """A color for each class: black for class 0, then distinct ones, again after 20."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    distinct = (255 * np.array([colormaps["tab20"](number)[:3] for number in range(20)])).astype(np.uint8)
    colors[1:] = np.resize(distinct, (255, 3))
    return colors


def mask_png(mask: Int64[Tensor, "H W"]) -> bytes:
    """A PNG with the class of each pixel as its number, and colors for viewers."""
    picture = Image.fromarray(mask.numpy().astype(np.uint8), mode="P")
    picture.putpalette(class_colors().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def overlay(image: ImagePixels, mask: Int64[Tensor, "H W"]) -> UInt8[Tensor, "3 H W"]:
    """The image, half covered by the colors of its classes; class 0 covers nothing.

    >>> overlay(torch.full((1, 1, 2), 200, dtype=torch.uint8), torch.tensor([[0, 1]]))[:, 0, 0].tolist()
    [200, 200, 200]
    """
    pixels = image.float() if image.dtype == torch.uint8 else 255 * image
    pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    colors = torch.from_numpy(class_colors())[mask.clamp(0, 255)].permute(2, 0, 1).float()
    return torch.where(mask > 0, (pixels + colors) / 2, pixels).round().clamp(0, 255).to(torch.uint8)
