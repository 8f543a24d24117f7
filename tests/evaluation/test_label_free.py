from __future__ import annotations

import math

import pytest
import torch

from patchcast.collapse import diversity
from patchcast.evaluation import alpha_req, lidar, rankme


def with_spectrum(singular: list[float], rows: int = 50, *, centered: bool = False) -> torch.Tensor:
    """A random matrix with exactly these singular values."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, len(singular), generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(dim=0) if centered else left).Q
    right = torch.linalg.qr(torch.randn(len(singular), len(singular), generator=generator, dtype=torch.float64)).Q
    return left * torch.tensor(singular, dtype=torch.float64) @ right


@pytest.mark.parametrize(
    ("singular", "rank"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], 5.0),
        ([3.0, 0.0, 0.0], 1.0),
        # entropy of (2/3, 1/3) = ln 3 - (2/3) ln 2
        ([2.0, 1.0], 3 / 2 ** (2 / 3)),
        # entropy of (1/2, 1/4, 1/4) = 1.5 ln 2
        ([2.0, 1.0, 1.0], 2**1.5),
    ],
)
def test_rankme_known_answers(singular, rank):
    assert rankme(with_spectrum(singular)) == pytest.approx(rank, rel=1e-5)


def test_rankme_is_of_the_singular_values_and_not_centred():
    x = with_spectrum([2.0, 1.0, 1.0])
    assert rankme(5 * x) == pytest.approx(rankme(x), rel=1e-9)
    assert rankme(torch.ones(10, 4)) == pytest.approx(1.0, rel=1e-4), "centered, it would be 0 / 0"


def views(between: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """Views at plus and minus each within-direction about each image's mean: S_w and S_b are exactly known."""
    offsets = torch.cat([torch.diag(within), -torch.diag(within)])
    return between[:, None] + offsets[None]


def test_lidar_known_answers():
    width = 4
    means = torch.cat([torch.eye(width), -torch.eye(width)]).double()
    # S_b = I / 4; views vary alike in all directions: all four tell images apart.
    equal = views(means, torch.ones(width).double())
    assert lidar(equal, delta=0.0) == pytest.approx(4.0, rel=1e-5)
    # S_w = diag(s^2) / 4: eigenvalues 1 / s^2 = (1, 1, 1/4, 1/4), so p = (0.4, 0.4, 0.1, 0.1).
    unequal = views(means, torch.tensor([1.0, 1.0, 2.0, 2.0]).double())
    entropy = -(0.8 * math.log(0.4) + 0.2 * math.log(0.1))
    assert lidar(unequal, delta=0.0) == pytest.approx(math.exp(entropy), rel=1e-5)
    # delta is added to S_w: with delta = 3/4 its diagonal is (1, 1, 7/4, 7/4), eigenvalues in ratio 7 : 4.
    p = torch.tensor([7, 7, 4, 4]).double() / 22
    expected = float(-(p * p.log()).sum())
    assert lidar(unequal, delta=0.75) == pytest.approx(math.exp(expected), rel=1e-5)


def test_lidar_sees_through_directions_in_which_only_views_vary():
    generator = torch.Generator().manual_seed(0)
    means = torch.zeros(200, 8)
    means[:, :2] = torch.randn(200, 2, generator=generator)
    noise = torch.randn(200, 20, 8, generator=generator)
    noise[..., :2] *= 0.01
    x = means[:, None] + noise
    assert lidar(x) < 2.2
    assert rankme(x.flatten(0, 1)) > 6, "which counts the noise"


def test_lidar_needs_images_and_views():
    with pytest.raises(ValueError, match="at least 2 images and 2 views of each; got 5 and 1"):
        lidar(torch.randn(5, 1, 3))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_known_answers(alpha):
    index = torch.arange(1, 121).double()
    x = with_spectrum((index ** (-alpha / 2)).tolist(), rows=400, centered=True)
    assert alpha_req(x) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(x + 7) == pytest.approx(alpha, abs=1e-6), "a shift is not covariance"


def test_alpha_fits_only_its_ranks():
    singular = torch.cat([torch.full((3,), 100.0), torch.arange(4, 101) ** -0.5, torch.full((20,), 1e-3)])
    assert alpha_req(with_spectrum(singular.tolist(), rows=400, centered=True)) == pytest.approx(1.0, abs=1e-6)


def test_alpha_weighs_ranks_by_their_inverse():
    """Two points of log(lambda) off the line pull as the weighted normal equations say (numpy's polyfit)."""
    import numpy as np

    index = np.arange(1, 31)
    values = index**-1.2 * np.where(index % 7 == 0, 1.5, 1.0)
    values = np.sort(values)[::-1]
    slope, _ = np.polyfit(np.log(index[3:]), np.log(values[3:]), 1, w=index[3:] ** -0.5)
    x = with_spectrum(np.sqrt(values).tolist(), rows=100, centered=True)
    assert alpha_req(x) == pytest.approx(-slope, abs=1e-6)


def test_alpha_of_too_few_directions_is_refused():
    with pytest.raises(ValueError, match="fits eigenvalues 4 to 100; these features have 5"):
        alpha_req(with_spectrum([5.0, 4.0, 3.0, 2.0, 1.0], centered=True))


def test_rankme_and_the_watch_measure_different_things_under_different_names() -> None:
    """RankMe (Garrido et al. 2023) takes features as they are; what a run watches is how images differ."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)) + 20.0
    singular = torch.linalg.svdvals(x.double())
    p = singular / singular.sum() + 1e-7
    assert rankme(x) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-9)
    assert rankme(x) < 2.5  # the mean's direction outweighs all others
    assert diversity(x).effective_rank > 7  # without the mean, all eight are used
