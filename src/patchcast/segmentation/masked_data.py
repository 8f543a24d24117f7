"""Images with masks for a segmenter: to train on, to choose the best epoch on, and to judge once at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from patchcast.data import Augment, Evaluate
from patchcast.data.masks import IGNORED, MaskedImages, fit_mask, open_masked
from patchcast.data.seeds import mix_seed
from patchcast.data.transforms import resize

VALIDATED_MASKS = 0.2
CROPS = (0.5, 1.0)
"""Shares of the image's area that crops take."""
MaskedExample = tuple[Float32[Tensor, "C H W"], Int64[Tensor, "H W"]]


@dataclass(frozen=True)
class MaskedData:
    """The three parts, and the names of the classes by number."""

    train: MaskedImages
    validation: MaskedImages
    test: MaskedImages
    names: list[str]
    phrase: str


def masked_data(folder: Path, *, channels: int, evaluate: Evaluate, seed: int = 0) -> MaskedData:
    """Split a folder of images and masks: its `train` split, a fifth of it to choose on, and its `test` split.

    Raises:
        ValueError: if there is no such folder, an image has no mask, or there is one class only.
    """
    parts = {
        split: open_masked(
            folder, split=split, channels=channels, transform=evaluate, size=evaluate.size, squash=evaluate.squash
        )
        for split in ("train", "test")
    }
    train = parts["train"]
    if len(train) < 2:
        raise ValueError(f"{folder} has {len(train)} training image; a fifth of them, and at least 1, is held out")
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    held = max(1, round(VALIDATED_MASKS * len(train)))
    fit, validation = (
        replace(train, files=[train.files[place] for place in sorted(places)])
        for places in (order[held:], order[:held])
    )
    highest = max(_highest(part) for part in (train, parts["test"]))
    if highest < 1:
        raise ValueError(f"all masks of {folder} are of class 0; a segmenter needs two classes")
    names = [*train.class_names, *map(str, range(len(train.class_names), highest + 1))]
    return MaskedData(fit, validation, parts["test"], names, f"{folder}: {len(train)} training images with masks")


def _highest(images: MaskedImages) -> int:
    """The highest class."""
    found = 0
    for place in range(len(images)):
        _, mask = images.read(place)
        known = mask[mask != IGNORED]
        found = max(found, int(known.max()) if len(known) else 0)
    return found


class AugmentedMasks(Dataset[MaskedExample]):
    """Crops and flips of images, and of their masks alike; by the keys of an `EpochSampler`.

    Args:
        augment: draws crop and flip.
        tiled: crops are of the network's size in the image's own pixels, instead of resized shares of the image.
    """

    def __init__(self, images: MaskedImages, augment: Augment, seed: int, *, tiled: bool = False) -> None:
        self.images, self.augment, self.seed, self.tiled = images, augment, seed, tiled

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> MaskedExample:
        epoch, index = key
        image, mask = self.images.read(index)
        chance = random.Random(mix_seed(self.seed, epoch, index))
        height, width = self.augment.size
        if self.tiled:
            image, mask = padded(image, mask, (height, width))
            top, left = chance.randint(0, mask.shape[0] - height), chance.randint(0, mask.shape[1] - width)
            rows, cols = height, width
        elif self.augment.scale is None:
            top, left, rows, cols = 0, 0, *mask.shape
        else:
            top, left, rows, cols = self.augment.draw_crop(mask.shape[0], mask.shape[1], chance)
        image, mask = image[:, top : top + rows, left : left + cols], mask[top : top + rows, left : left + cols]
        image, mask = resize(image, (height, width)), fit_mask(mask, (height, width), squash=True)
        if self.augment.flip and chance.random() < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return self.augment.normalize(image), mask


def padded(image: Tensor, mask: Int64[Tensor, "H W"], size: tuple[int, int]) -> tuple[Tensor, Int64[Tensor, "h w"]]:
    """At least of a size: the border is repeated, and its mask ignored."""
    rows, cols = (max(0, wanted - have) for wanted, have in zip(size, mask.shape, strict=True))
    if not rows and not cols:
        return image, mask
    image = torch.nn.functional.pad(image.float(), (0, cols, 0, rows), mode="replicate").to(image.dtype)
    return image, torch.nn.functional.pad(mask, (0, cols, 0, rows), value=IGNORED)


def places_of_tiles(size: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where tiles that overlap by half begin, so that they cover an image that is at least as large as a tile.

    >>> list(places_of_tiles((8, 10), (8, 4)))
    [(0, 0), (0, 2), (0, 4), (0, 6)]
    """

    def starts(whole: int, one: int) -> Sequence[int]:
        return sorted({*range(0, whole - one, max(1, one // 2)), whole - one})

    return ((top, left) for top in starts(size[0], tile[0]) for left in starts(size[1], tile[1]))
