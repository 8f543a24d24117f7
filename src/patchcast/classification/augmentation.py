"""Augmentations of fine-tuning, each a function of an image and a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor
from torchvision.transforms import RandomErasing, TrivialAugmentWide

from patchcast.data import Augment, Evaluate
from patchcast.data.transforms import ImagePixels, resize

Strength = Literal["none", "light", "strong"]
LIGHT, STRONG = (0.5, 1.0), (0.2, 1.0)
"""Shares of the image's area that crops take."""
ERASED = 0.25
"""Share of images of which a part is erased, as in timm's recipes for fine-tuning."""


class StrongAugment:
    """Crops, flips, one operation of TrivialAugment (Müller and Hutter 2021), and random erasing (Zhong et al. 2020).

    >>> strong = StrongAugment(Augment((32, 32), STRONG, True, mean=(0.5,), std=(0.5,)))
    >>> image = torch.randint(256, (1, 48, 64), dtype=torch.uint8)
    >>> torch.equal(strong(image, 1), strong(image, 1)), torch.equal(strong(image, 1), strong(image, 2))
    (True, False)

    Args:
        augment: draws crop and flip, knows size and normalization.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment
        self.change, self.erase = TrivialAugmentWide(), RandomErasing(ERASED)

    def __call__(self, image: ImagePixels, seed: int) -> Float32[Tensor, "C h w"]:
        if image.dtype != torch.uint8 or len(image) not in (1, 3):
            raise ValueError(
                f"--augment strong takes images of 8 bits with 1 or 3 channels; got {len(image)} channels of "
                f"{image.dtype}: use --augment light"
            )
        cut = self.augment.cut(image, seed)
        image = resize(cut.pixels, self.augment.size)
        image = image.flip(-1) if cut.is_flipped else image
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global state
            torch.default_generator.manual_seed(seed)
            return self.erase(self.augment.normalize(self.change(image)))


def classifier_augmentation(
    strength: Strength, evaluate: Evaluate, *, flip: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Tensor, int], Tensor]:
    """What training sees of an image.

    Args:
        evaluate: what it sees without augmentation.
        flip: whether half of the images are mirrored, if there is any augmentation.
    """
    if strength == "none":
        return lambda image, seed: evaluate(image)
    if strength == "light":
        return Augment(evaluate.size, LIGHT, flip, mean, std)
    return StrongAugment(Augment(evaluate.size, STRONG, flip, mean, std))
