from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from patchcast.data import channel_statistics, open_images


def test_against_numpy(shared_data):
    images = open_images(str(shared_data / "eurosat"), split="test")
    pixels = np.stack([example.image.numpy() for example in images]) / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert std == pytest.approx(pixels.std((0, 2, 3)))
    sample, _ = channel_statistics(images, limit=3)
    assert sample == pytest.approx(pixels[[0, 499, 999]].mean((0, 2, 3)))


def test_pixels_and_not_images_weigh(tmp_path):
    Image.new("L", (10, 30), 0).save(tmp_path / "large.png")
    Image.new("L", (10, 10), 255).save(tmp_path / "small.png")
    mean, std = channel_statistics(open_images(str(tmp_path)))
    assert mean == pytest.approx((0.25,))
    assert std == pytest.approx((np.sqrt(0.25 * 0.75),))


def test_a_constant_channel_can_be_normalized():
    mean, std = channel_statistics(open_images("digits", channels=4), limit=10)
    assert (mean[3], std[3]) == (1.0, 1 / 255)
