"""Histograms of oriented gradients, by loops and by scikit-image where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchcast.backbones import wrap
from patchcast.methods import maskfeat
from patchcast.plans import BlockMask
from patchcast.targets import HOG


def by_loops(image: Tensor, bins: int, cell: int) -> np.ndarray:
    """(rows, cols, bins) of one channel, pixel by pixel."""
    pixels = image.double().numpy()
    height, width = pixels.shape
    found = np.zeros((height // cell, width // cell, bins))
    for row in range(height):
        for col in range(width):
            down = pixels[row + 1, col] - pixels[row - 1, col] if 0 < row < height - 1 else 0.0
            right = pixels[row, col + 1] - pixels[row, col - 1] if 0 < col < width - 1 else 0.0
            place = min(bins - 1, int(math.degrees(math.atan2(down, right)) % 180 / 180 * bins))
            found[row // cell, col // cell, place] += math.hypot(down, right)
    found /= cell * cell
    return found / np.sqrt((found**2).sum(-1, keepdims=True) + 1e-10)


def as_maps(target: HOG, images: Tensor) -> Tensor:
    """The target as (B, rows of cells, cols of cells, channels, bins)."""
    rows, cols = (side // target.cell // cells for side, cells in zip(images.shape[2:], target.cells, strict=True))
    units = target(images).view(len(images), rows, cols, *target.cells, target.channels, target.bins)
    return units.permute(0, 1, 3, 2, 4, 5, 6).flatten(1, 2).flatten(2, 3)


@pytest.mark.parametrize(("stride", "cell"), [((8, 8), 8), ((16, 16), 8), ((8, 16), 4), ((14, 14), 7)])
def test_it_is_what_loops_give(stride: tuple[int, int], cell: int) -> None:
    images = torch.randn(2, 2, 2 * stride[0], 2 * stride[1])
    target = HOG(stride, channels=2, cell=cell)
    maps = as_maps(target, images)
    for image, found in zip(images, maps, strict=True):
        for channel in range(2):
            wanted = torch.from_numpy(by_loops(image[channel], 9, cell)).float()
            torch.testing.assert_close(found[:, :, channel], wanted, atol=1e-5, rtol=1e-4)


def test_it_is_what_scikit_image_gives() -> None:
    hog = pytest.importorskip("skimage.feature", reason="scikit-image is not installed").hog
    images = torch.randn(1, 1, 32, 48, dtype=torch.float64)
    wanted = hog(images[0, 0].numpy(), 9, (8, 8), (1, 1), block_norm="L2", feature_vector=False, transform_sqrt=False)[
        :, :, 0, 0
    ]
    torch.testing.assert_close(
        as_maps(HOG((16, 16), channels=1), images)[0, :, :, 0], torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-4
    )


def test_flat_images_have_no_direction() -> None:
    assert not HOG((8, 8), channels=3)(torch.full((1, 3, 16, 16), 0.5)).any()


@pytest.mark.parametrize(("stride", "cell"), [(16, 8), (32, 8), (14, 7), (12, 6), (4, 4)])
def test_the_usual_cell(stride: int, cell: int) -> None:
    assert HOG((stride, stride), channels=3).cell == cell


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="units of 16x16 pixels are not made of whole cells of 5 pixels"):
        HOG((16, 16), channels=3, cell=5)
    with pytest.raises(ValueError, match="one bin or more; got 0"):
        HOG((16, 16), channels=3, bins=0)


def test_the_methods_parts() -> None:
    pretrainer = maskfeat(wrap("test_vit", img_size=64), bins=6)
    assert isinstance(pretrainer.target, HOG)
    assert pretrainer.plan == BlockMask(0.4)
    assert pretrainer(torch.randn(2, 3, 64, 64)).predictions.shape[-1] == 6 * 3 * 4
