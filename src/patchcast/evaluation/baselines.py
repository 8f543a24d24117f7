"""Baseline features without training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PIXELS, STATISTICS, CONVOLUTIONS = "raw pixels", "image statistics", "random convolutions"

PIXELS_A_SIDE = 16
"""Raw pixels are averaged down to this size: a classifier on 12,288 values takes minutes."""


class RawPixels(nn.Module):
    """The pixels, averaged down to at most `side` x `side`.

    >>> RawPixels(2)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 12])
    """

    def __init__(self, side: int = PIXELS_A_SIDE) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        height, width = images.shape[2:]
        small = F.interpolate(images, size=(min(height, self.side), min(width, self.side)), mode="area")
        return small.flatten(1)


class ImageStatistics(nn.Module):
    """Mean, standard deviation, minimum and maximum of each channel.

    >>> image = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).view(1, 1, 2, 2)
    >>> ImageStatistics()(image).tolist()
    [[2.0, 1.0, 1.0, 3.0]]
    """

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 4*C"]:
        std, mean = torch.std_mean(images, dim=(2, 3), correction=0)
        return torch.cat([mean, std, images.amin(dim=(2, 3)), images.amax(dim=(2, 3))], dim=1)


class RandomConvolutions(nn.Module):
    """One layer of random convolutions: the mean of the positive and of the negative part of each response.

    >>> RandomConvolutions(channels=4, count=8)(torch.zeros(2, 4, 16, 16)).shape
    torch.Size([2, 16])

    Args:
        channels: of the images.
        count: number of filters; each gives two features.
        size: pixels per side of a filter. Filters are cropped for smaller images.
        seed: of the filters, whose weights are normally distributed. The global random state is not changed.
    """

    filters: Tensor

    def __init__(self, channels: int, *, count: int = 256, size: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # Scaled so that white noise of variance 1 gives responses of variance 1.
        filters = torch.randn(count, channels, size, size, generator=generator) / (channels * size**2) ** 0.5
        self.register_buffer("filters", filters)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        height, width = images.shape[2:]
        filters = self.filters[:, :, :height, :width]
        # One piece of the batch at a time: the responses of 256 images of 224x224 would be 13 GB.
        pieces = images.split(max(1, 2**26 // (len(filters) * height * width)))
        return torch.cat([self._parts(F.conv2d(piece, filters)) for piece in pieces])

    @staticmethod
    def _parts(responses: Float[Tensor, "B K h w"]) -> Float[Tensor, "B 2*K"]:
        positive, negative = responses.clamp(min=0), responses.clamp(max=0)
        return torch.cat([positive.mean(dim=(2, 3)), -negative.mean(dim=(2, 3))], dim=1)


BASELINES: dict[str, Callable[[int], nn.Module]] = {
    PIXELS: lambda channels: RawPixels(),
    STATISTICS: lambda channels: ImageStatistics(),
    CONVOLUTIONS: RandomConvolutions,
}
"""By name of the row; each is called with the number of channels."""
