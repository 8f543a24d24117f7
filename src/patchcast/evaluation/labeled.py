"""Labeled images for a protocol: a training and a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.data import EpochSampler, EvalLoader, EvalSet, Images, Source, TrainSet, loader, open_source

LOADER_BATCH = 256


@dataclass(frozen=True)
class Prepared:
    """Preprocessed images with their labels."""

    images: Images
    transform: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        image, label = self.images[place]
        return self.transform(image), label


@dataclass(frozen=True)
class Labeled:
    """Training images, test images, and a description of both."""

    train: Images
    test: Images
    description: str

    @property
    def classes(self) -> int:
        """The number of classes: labels are below it."""
        return int(max(labels_of(self.train).max(), labels_of(self.test).max())) + 1

    @property
    def is_imbalanced(self) -> bool:
        """Whether a class of the test images has at least twice as many as another one."""
        counts = np.unique(labels_of(self.test), return_counts=True)[1]
        return bool(counts.max() >= 2 * counts.min())

    def loaders(self, transform: Callable[[Tensor], Tensor]) -> tuple[EvalLoader, EvalLoader]:
        """Batches of the training and of the test images, in order, without augmentation or unreadable images."""
        train, test = (EvalLoader(EvalSet(images, transform), LOADER_BATCH) for images in (self.train, self.test))
        return train, test

    def augmented(
        self, augment: Callable[[Tensor, int], Tensor], *, steps: int, batch_size: int, seed: int
    ) -> DataLoader[Any]:
        """`steps` batches of augmented training images, epoch after epoch."""
        sampler = EpochSampler(len(self.train), batch_size, seed=seed, steps=steps)
        return loader(TrainSet(self.train, augment, seed), sampler, workers=0)

    def affordable(self, per_class: Sequence[int]) -> list[int]:
        """The numbers of labels per class that are available in every class."""
        fewest = int(np.unique(labels_of(self.train), return_counts=True)[1].min())
        return [count for count in per_class if count <= fewest]


def open_labeled(
    data: str | Source,
    *,
    channels: int,
    limit: int | None = None,
    held_out_share: float = 0.0,
    split: str | None = None,
    **reading: Any,
) -> Labeled:
    """The labeled images of a source, for a probe; see `patchcast.data.Source.labeled`.

    Args:
        data: the source, or one that is open already.
        limit: maximum number of training images, drawn at random with a fixed seed.
        held_out_share: what a run on this source held out.
        split: that is judged on; None for the test split, or else the validation split.
        reading: `image_column`, `label_column` and `max_pixels` of `patchcast.data.open_source`.
    Raises:
        ValueError: if the source has no labels.
    """
    if not isinstance(data, Source):
        data = open_source(data, channels=channels, held_out_share=held_out_share, **reading)
    parts = data.labeled(limit, split)
    return Labeled(parts.train, parts.test, parts.phrase)


def labels_of(images: Images) -> np.ndarray:
    """The class of each image, in the order of the source."""
    labels = images.labels
    assert labels is not None, "a Labeled has labels only"
    return labels


def paths_of(images: Images) -> list[str]:
    """The name of each image in its source."""
    return [images.store.path(int(position)) for position in images.positions]


def some_of(images: Images, count: int) -> Images:
    """At most `count` images, drawn with a fixed seed: sources are often sorted by class."""
    if len(images) <= count:
        return images
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return images.subset(drawn.numpy())
