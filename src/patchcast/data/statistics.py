"""Mean and standard deviation of a source's channels, for normalizing."""

from __future__ import annotations

import torch

from patchcast.data.images import Images, evenly_spaced

SMALLEST_STD = 1 / 255


def channel_statistics(images: Images, limit: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pixels of an evenly spaced sample; white is 1.

    >>> from patchcast.data import open_images
    >>> mean, std = channel_statistics(open_images("digits"))
    >>> f"{mean[0]:.2f} {std[0]:.2f}"
    '0.31 0.38'

    The standard deviation is at least one gray level (1/255; for images of more bits, 1/65535 and a thousandth of the
    mean), so that a constant channel such as alpha can be normalized.

    Args:
        limit: maximum number of images to read.
    """
    is_deep = False
    count, total, squares = 0, torch.zeros(images.channels).double(), torch.zeros(images.channels).double()
    for index in evenly_spaced(len(images), limit):
        pixels = images[index].image.flatten(1)
        is_deep |= pixels.is_floating_point()
        pixels = pixels.double() if pixels.is_floating_point() else pixels.double() / 255
        count += pixels.shape[1]
        total += pixels.sum(1)
        squares += pixels.square().sum(1)
    mean = total / count
    smallest = (mean.abs() / 1000).clamp(min=1 / 65535) if is_deep else torch.full_like(mean, SMALLEST_STD)
    std = (squares / count - mean.square()).clamp(min=0).sqrt().maximum(smallest)
    return tuple(mean.tolist()), tuple(std.tolist())
