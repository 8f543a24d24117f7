from __future__ import annotations

import pytest
import torch

from patchcast.backbones import Grid
from patchcast.evaluation.maps import pca_maps


def test_units_with_like_features_have_like_colors_across_images():
    kinds = torch.randint(0, 3, (4, 36))
    features = 10 * torch.eye(3, 16)[kinds] + 0.01 * torch.randn(4, 36, 16)
    colors = pca_maps(features, Grid(6, 6)).float().flatten(2).movedim(1, 2)
    centers = torch.stack([colors[kinds == kind].mean(dim=0) for kind in range(3)])
    # The third component is noise: with three kinds of units there are two directions.
    nearest = torch.cdist(colors[..., :2].flatten(0, 1), centers[:, :2]).argmin(dim=1)
    assert torch.equal(nearest, kinds.flatten())
    assert colors.min() == 0
    assert colors.max() == 255


def test_features_that_are_all_alike_have_a_color_too():
    assert pca_maps(torch.ones(1, 16, 8), Grid(4, 4)).unique().numel() == 1


def test_too_little_for_three_components_is_refused():
    with pytest.raises(ValueError, match="got 2 channels and 16 units"):
        pca_maps(torch.ones(1, 16, 2), Grid(4, 4))
