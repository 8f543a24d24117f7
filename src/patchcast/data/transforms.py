"""From an image to the float32 tensor that a model sees. Randomness comes from an explicit seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

ImagePixels = UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]
"""8 bits with white 255, or numbers with white 1."""
RATIO = (3 / 4, 4 / 3)
TRIES = 10


class Cut(NamedTuple):
    """A crop of an image, whether to mirror it, and the (height, width) to resize it to."""

    pixels: ImagePixels
    is_flipped: bool
    size: tuple[int, int]


class Augment:
    """Random resized crop, horizontal flip, normalize: the augmentation of MAE and AIM.

    >>> augment = Augment((32, 32), scale=(0.2, 1.0), flip=True, mean=(0.5,), std=(0.5,))
    >>> image = torch.randint(256, (1, 48, 64), dtype=torch.uint8)
    >>> augment(image, seed=1).shape, torch.equal(augment(image, seed=1), augment(image, seed=1))
    (torch.Size([1, 32, 32]), True)

    The crop is drawn as in torchvision's `RandomResizedCrop`: an area uniform in `scale`, and an aspect ratio
    log-uniform in 3/4 to 4/3. After ten crops that do not fit into the image, a central crop is used. The ratio is
    relative to that of `size`, so that non-square targets are not distorted. Resizing is bicubic with antialiasing. No
    global random state is read or changed.

    Args:
        size: (height, width) of the output.
        scale: minimum and maximum share of the image's area; (0.2, 1) in MAE, (0.4, 1) in AIM. None: no crop, the whole
            image is resized.
        flip: mirror half of the images.
        mean: mean of each channel; white is 1.
        std: standard deviation of each channel.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] | None,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale needs 0 < smallest <= largest <= 1, as shares of the image's area; got {scale}")
        self.size = size
        self.scale = scale
        self.flip = flip
        self.normalize = Normalize(mean, std)

    def __call__(self, image: ImagePixels, seed: int) -> Float32[Tensor, "C h w"]:
        cut = self.cut(image, seed)
        image = resize(cut.pixels, self.size)
        return self.normalize(image.flip(-1) if cut.is_flipped else image)

    def cut(self, image: ImagePixels, seed: int) -> Cut:
        """Draw the crop, and whether it is flipped."""
        (top, left, height, width), is_flipped = self.draw(image.shape[-2], image.shape[-1], seed)
        return Cut(image[:, top : top + height, left : left + width], is_flipped, self.size)

    def draw(self, rows: int, cols: int, seed: int) -> tuple[tuple[int, int, int, int], bool]:
        """The crop of an image of rows x cols, (top, left, height, width), and whether it is flipped."""
        chance = random.Random(seed)
        box = (0, 0, rows, cols) if self.scale is None else self.draw_crop(rows, cols, chance)
        return box, self.flip and chance.random() < 0.5

    def draw_crop(self, rows: int, cols: int, chance: random.Random) -> tuple[int, int, int, int]:
        """Where to crop an image of rows x cols: (top, left, height, width)."""
        assert self.scale is not None
        target = self.size[1] / self.size[0]
        for _ in range(TRIES):
            area = rows * cols * chance.uniform(*self.scale)
            ratio = target * math.exp(chance.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= rows and 0 < width <= cols:
                return chance.randint(0, rows - height), chance.randint(0, cols - width), height, width
        ratio = min(max(cols / rows, target * RATIO[0]), target * RATIO[1])
        height, width = max(1, min(rows, round(cols / ratio))), max(1, min(cols, round(rows * ratio)))
        return (rows - height) // 2, (cols - width) // 2, height, width


class Evaluate:
    """Resize until the image just covers the target, crop the center and normalize; or resize without cropping.

    >>> evaluate = Evaluate((8, 8), mean=(0.5,), std=(0.5,))
    >>> evaluate(torch.zeros(1, 12, 16, dtype=torch.uint8)).unique()
    tensor([-1.])

    Args:
        size: (height, width) of the output; an image of this size is not resampled.
        mean: mean of each channel; white is 1.
        std: standard deviation of each channel.
        squash: resize the whole image to the target size, without cropping and without keeping the aspect ratio.
    """

    def __init__(
        self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], *, squash: bool = False
    ) -> None:
        self.size, self.squash = size, squash
        self.normalize = Normalize(mean, std)

    def __call__(self, image: ImagePixels) -> Float32[Tensor, "C h w"]:
        if self.squash:
            return self.normalize(resize(image, self.size))
        (rows, cols), (height, width) = image.shape[-2:], self.size
        cover = max(height / rows, width / cols)
        image = resize(image, (max(height, round(rows * cover)), max(width, round(cols * cover))))
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return self.normalize(image[:, top : top + height, left : left + width])


class Normalize:
    """(image / white - mean) / std for each channel; white is 255 for uint8 and 1 for float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"needs a mean and a positive std for each channel; got mean {mean} and std {std}")
        self.factor = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float()[:, None, None]
        self.offset = -(torch.tensor(mean, dtype=torch.float64) / torch.tensor(std)).float()[:, None, None]

    def __call__(self, image: ImagePixels) -> Float32[Tensor, "C H W"]:
        if len(image) != len(self.factor):
            raise ValueError(f"mean and std are of {len(self.factor)} channels; the image has {len(image)}")
        if image.dtype == torch.uint8:
            return image.contiguous().float().mul_(self.factor).add_(self.offset)
        return image.contiguous().mul(255 * self.factor).add_(self.offset)

    def batch(self, images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """The same for a batch, on its device."""
        factor = self.factor if images.dtype == torch.uint8 else 255 * self.factor
        factor, offset = (each.to(images.device, non_blocking=True) for each in (factor, self.offset))
        return images.float().mul(factor).add_(offset)


def resize(image: ImagePixels, size: tuple[int, int]) -> UInt8[Tensor, "C h w"] | Float32[Tensor, "C h w"]:
    """Bicubic resizing with antialiasing, in uint8 for uint8 images, as in Pillow and torchvision.

    An image that already has the size is returned unchanged.
    """
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def denormalize(
    images: Float[Tensor, "*B C H W"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[Tensor, "*B C H W"]:
    """Convert normalized images back to pixels; values beyond black and white are clipped.

    >>> image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    >>> torch.equal(denormalize(Evaluate((8, 8), (0.3,), (0.4,))(image), (0.3,), (0.4,)), image)
    True
    """
    means, stds = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return ((images.float() * stds + means) * 255).round().clamp(0, 255).to(torch.uint8)


Normalise, denormalise = Normalize, denormalize
"""Their earlier names."""
