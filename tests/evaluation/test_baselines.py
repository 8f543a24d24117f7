"""Features that need no training: their values by hand, and that they are the same every time."""

from __future__ import annotations

import pytest
import torch

from patchcast.evaluation.baselines import BASELINES, CONVOLUTIONS, ImageStatistics, RandomConvolutions, RawPixels
from patchcast.evaluation.features import extract_with


def test_statistics_by_hand() -> None:
    image = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 1.0], [1.0, 5.0]]])[None]
    means, spreads = [3.0, 2.0], [5.0**0.5, 3.0**0.5]
    expected = torch.tensor([[*means, *spreads, 0.0, 1.0, 6.0, 5.0]])
    torch.testing.assert_close(ImageStatistics()(image), expected)


def test_random_convolutions_by_hand() -> None:
    model = RandomConvolutions(channels=1, count=2, size=2)
    model.filters = torch.tensor([[[[1.0, -1.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    image = torch.tensor([[0.0, 1.0, 3.0], [5.0, 2.0, 2.0]])[None, None]
    # Filter 0 answers -1 and -2 at its two places, filter 1 answers 4 and 4.
    assert model(image).tolist() == [[0.0, 4.0, 1.5, 0.0]]


def test_random_convolutions_are_the_same_every_time() -> None:
    images = torch.randn(3, 13, 9, 7, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    first, again, other = RandomConvolutions(13), RandomConvolutions(13), RandomConvolutions(13, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))
    # The first two numbers of the generator, which torch promises for a seed on the CPU.
    drawn = torch.randn(256, 13, 5, 5, generator=torch.Generator().manual_seed(0)) / (13 * 25) ** 0.5
    assert torch.equal(first.filters, drawn)


def test_a_batch_in_pieces_is_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = RandomConvolutions(3, count=8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)
    small = RandomConvolutions(3, count=8)(images[:, :, :3, :2])
    assert small.shape == (5, 16), "images smaller than a filter are taken too"


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_every_baseline_takes_any_channels_and_sizes(name: str, channels: int) -> None:
    model = BASELINES[name](channels)
    for size in ((8, 8), (20, 33)):
        features = extract_with(model, [(torch.randn(4, channels, *size), torch.arange(4))])
        assert len(features) == 4
        assert features.x.isfinite().all()


def test_raw_pixels_are_averaged_down() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert RawPixels(2)(image).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert torch.equal(RawPixels(8)(image), image.flatten(1)), "small images stay as they are"


def test_textures_are_told_by_convolutions_alone() -> None:
    """Stripes across and down have equal statistics, and pixels that a shift undoes; filters see the difference."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.sin(torch.arange(16.0)[None] + 6 * torch.rand(40, 1, generator=generator))
    images = waves[:, None, None, :].expand(-1, 1, 16, -1)
    images = torch.where((torch.arange(40) % 2 == 0).view(-1, 1, 1, 1), images, images.transpose(2, 3))
    torch.testing.assert_close(ImageStatistics()(images), ImageStatistics()(images.transpose(2, 3)))
    features = BASELINES[CONVOLUTIONS](1)(images)
    across, down = features[::2], features[1::2]
    assert (across.mean(0) - down.mean(0)).norm() > 3 * torch.stack([across.std(0), down.std(0)]).norm()
