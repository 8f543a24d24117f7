"""Labeled images for a protocol: some to fit on, others to judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.data import EpochSampler, Images, TrainSet, loader, open_images
from patchcast.data.images import Example
from patchcast.evaluation.splits import stratified_split

BATCH = 256
JUDGING = ("test", "validation", "val")
"""Splits to judge by, the first that a source has."""


@dataclass(frozen=True)
class Chosen:
    """Some images of a source."""

    images: Images
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int, /) -> Example:
        return self.images[int(self.index[place])]

    def preload(self) -> bool:
        return self.images.preload()

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, as the source lists them."""
        labels = self.images.labels
        assert labels is not None
        return labels[self.index]

    def subset(self, places: np.ndarray) -> Chosen:
        """The images at these places."""
        return Chosen(self.images, self.index[places])

    @property
    def paths(self) -> list[str]:
        """Names of the images in their source."""
        return [self.images.store.path(int(self.images.positions[place])) for place in self.index]


@dataclass(frozen=True)
class Prepared:
    """Chosen images as a network sees them, with their labels."""

    chosen: Chosen
    transform: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        image, label = self.chosen[place]
        return self.transform(image), label


@dataclass(frozen=True)
class Labeled:
    """Images to fit on, images to judge by, and a description of both."""

    train: Chosen
    test: Chosen
    description: str

    @property
    def classes(self) -> int:
        """Labels are below this."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def loaders(self, transform: Callable[[Tensor], Tensor]) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Batches of the training and of the test images, in order and without augmentation."""
        train: Any = Prepared(self.train, transform)
        test: Any = Prepared(self.test, transform)
        return DataLoader(train, batch_size=BATCH), DataLoader(test, batch_size=BATCH)

    def augmented(
        self, augment: Callable[[Tensor, int], Tensor], *, steps: int, batch_size: int, seed: int
    ) -> DataLoader[Any]:
        """`steps` batches of augmented training images, epoch after epoch."""
        sampler = EpochSampler(len(self.train), batch_size, seed=seed, steps=steps)
        return loader(TrainSet(self.train, augment, seed), sampler, workers=0)

    def affordable(self, per_class: list[int]) -> list[int]:
        """Those numbers of labels per class that every class has."""
        fewest = int(np.unique(self.train.labels, return_counts=True)[1].min())
        return [count for count in per_class if count <= fewest]


def open_labeled(data: str, *, channels: int, limit: int | None = None) -> Labeled:
    """The training split of a source, and its test or validation split, or a fifth held out where it has none.

    Args:
        limit: maximum number of training images, drawn at random with a fixed seed.
    Raises:
        ValueError: if the source has no labels.
    """
    images = open_images(data, channels=channels)
    if images.labels is None:
        raise ValueError(f"{data} has no labels, which a probe needs; give --data a labeled source")
    held_out = [split for split in JUDGING if split in images.splits]
    generator = torch.Generator().manual_seed(0)
    index = np.arange(len(images))
    if held_out:
        other = open_images(data, split=held_out[0], channels=channels)
        if other.labels is None:
            raise ValueError(f"the {held_out[0]} split of {data} has no labels, which a probe needs")
        test = Chosen(other, np.arange(len(other)))
        description = f"{data}, judged on its {held_out[0]} split"
    else:
        fit, judge = stratified_split(torch.from_numpy(images.labels), 0.2, generator=generator)
        index, test = fit.numpy(), Chosen(images, judge.numpy())
        description = f"{data}, judged on a fifth of it held out"
    if limit is not None and limit < len(index):
        index = index[torch.randperm(len(index), generator=generator)[:limit].numpy()]
    return Labeled(Chosen(images, index), test, description)


def some_of(chosen: Chosen, count: int) -> Chosen:
    """At most `count` images, drawn with a fixed seed: sources are often sorted by class."""
    if len(chosen) <= count:
        return chosen
    drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count]
    return chosen.subset(drawn.numpy())
