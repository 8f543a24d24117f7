"""Augmentation as torchvision defines it, but from an explicit seed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from patchcast.data import Augment, Evaluate, denormalize
from patchcast.data.transforms import resize

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(rows: int, cols: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (channels, rows, cols), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(20, 20), (33, 17), (7, 50)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_resizing_is_torchvisions(size, memory):
    image = noise(24, 40)[None].contiguous(memory_format=memory)[0]
    expected = TF.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resize(image, size), expected)


def test_a_sample_is_a_crop_resized_perhaps_flipped_and_normalized():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    augment = Augment((16, 16), (0.2, 1.0), True, mean, std)
    image, flips = noise(40, 30), 0
    for seed in range(50):
        top, left, height, width = augment.draw_crop(40, 30, random.Random(seed))
        crop = TF.resized_crop(image, top, left, height, width, [16, 16], InterpolationMode.BICUBIC, antialias=True)
        straight, mirrored = (TF.normalize(TF.to_dtype(c, scale=True), mean, std) for c in (crop, crop.flip(-1)))
        sample = augment(image, seed)
        assert sample.dtype == torch.float32
        is_flipped = torch.allclose(sample, mirrored, atol=1e-5)
        flips += is_flipped
        assert is_flipped or torch.allclose(sample, straight, atol=1e-5)
    assert 10 < flips < 40


@pytest.mark.parametrize("rows_cols", [(64, 64), (384, 512), (33, 97)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.4, 1.0), (0.05, 0.1)])
def test_crops_keep_area_ratio_and_image(rows_cols, scale):
    rows, cols = rows_cols
    augment = Augment((16, 16), scale, False, **PLAIN)
    for seed in range(300):
        top, left, height, width = augment.draw_crop(rows, cols, random.Random(seed))
        assert 0 <= top <= rows - height
        assert 0 <= left <= cols - width
        slack = (1 + 0.5 / height) * (1 + 0.5 / width)  # sides are rounded
        assert 3 / 4 / slack <= width / height <= 4 / 3 * slack
        # If ten tries do not fit, which happens in long images, it is the largest central one.
        is_central = (top, left) == ((rows - height) // 2, (cols - width) // 2)
        assert scale[0] / slack <= height * width / (rows * cols) <= scale[1] * slack or is_central


def test_crops_are_distributed_as_torchvisions():
    augment = Augment((16, 16), (0.2, 1.0), False, **PLAIN)
    image, count = torch.zeros(3, 60, 90, dtype=torch.uint8), 4000
    ours = np.array([augment.draw_crop(60, 90, random.Random(seed)) for seed in range(count)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    for name, measure in {
        "top": lambda c: c[:, 0],
        "left": lambda c: c[:, 1],
        "area": lambda c: c[:, 2] * c[:, 3],
        "ratio": lambda c: c[:, 3] / c[:, 2],
    }.items():
        a, b = measure(ours), measure(theirs)
        error = np.sqrt((a.var() + b.var()) / count)
        assert abs(a.mean() - b.mean()) < 4 * error, name
        assert np.quantile(a, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(b, [0.1, 0.5, 0.9]), rel=0.15, abs=1), name


def test_shapes_stay_true_in_targets_that_are_not_square():
    augment = Augment((16, 48), (0.05, 0.3), False, **PLAIN)
    for seed in range(200):  # in an image where lying and standing crops both fit
        _, _, height, width = augment.draw_crop(300, 300, random.Random(seed))
        assert 0.7 < (width / 48) / (height / 16) < 1.42


@pytest.mark.parametrize("rows_cols", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_extreme_images_can_be_cropped(rows_cols):
    augment = Augment((8, 8), (0.2, 1.0), True, **PLAIN)
    for seed in range(20):
        assert augment(noise(*rows_cols), seed).shape == (3, 8, 8)
    assert Evaluate((8, 8), **PLAIN)(noise(*rows_cols)).shape == (3, 8, 8)


def test_no_crop_and_no_flip_is_only_a_resize():
    image = noise(20, 30)
    augment = Augment((10, 10), None, False, **PLAIN)
    assert torch.allclose(augment(image, 1) * 255, resize(image, (10, 10)).float(), atol=1e-4)
    assert torch.equal(augment(image, 1), augment(image, 2))


def test_the_seed_decides_and_the_global_state_is_left_alone():
    augment, image = Augment((8, 8), (0.2, 1.0), True, **PLAIN), noise(32, 32)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    samples = [augment(image, seed) for seed in range(20)]
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    random.seed(7)
    assert all(torch.equal(sample, augment(image, seed)) for seed, sample in enumerate(samples))
    assert len({sample.numpy().tobytes() for sample in samples}) == 20


def test_evaluate_covers_and_cuts_the_centre():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, :, 20:60] = 255
    assert (Evaluate((20, 20), **PLAIN)(image)[:, :, 1:-1] == 1).all()  # a halo of the edge in the outermost pixels
    assert (Evaluate((20, 20), **PLAIN)(image.mT)[:, 1:-1] == 1).all()
    assert Evaluate((24, 20), **PLAIN)(noise(37, 41)).shape == (3, 24, 20)


def test_evaluate_leaves_pixels_of_the_right_size_alone_and_can_be_undone():
    image, mean, std = noise(12, 16), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    assert torch.equal(denormalize(Evaluate((12, 16), mean, std)(image), mean, std), image)


def test_denormalize_clips_and_takes_batches():
    images = torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1, 1)
    assert denormalize(images, (0.5,), (0.5,)).flatten().tolist() == [0, 128, 255]


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"0 < smallest <= largest <= 1, .*got \(0\.5, 0\.2\)"):
        Augment((8, 8), (0.5, 0.2), True, **PLAIN)
    with pytest.raises(ValueError, match="positive std"):
        Evaluate((8, 8), (0.5,), (0.0,))
    with pytest.raises(ValueError, match="3 channels; the image has 1"):
        Evaluate((8, 8), **PLAIN)(noise(8, 8, channels=1))
