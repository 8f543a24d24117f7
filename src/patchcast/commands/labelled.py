"""Labelled images for a command: some to fit on, others to judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.data import EpochSampler, EvalLoader, EvalSet, Images, Source, TrainSet, loader, open_source
from patchcast.data.images import Example

BATCH = 256


@dataclass(frozen=True)
class Chosen:
    """Some images of a source."""

    images: Images
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def part(self) -> Images:
        """The chosen images as a data set of their own, so that none from outside it stands in for a broken one."""
        return self.images.subset(self.index)

    def __getitem__(self, place: int, /) -> Example:
        return self.part[place]

    def preload(self) -> bool:
        return self.part.preload()

    @property
    def labels(self) -> np.ndarray:
        """The class of each, as the source lists them."""
        labels = self.images.labels
        assert labels is not None
        return labels[self.index]


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
class Labelled:
    """Images to fit on, images to judge by, and what they are, in words."""

    train: Chosen
    test: Chosen
    told: str

    @property
    def classes(self) -> int:
        """Labels are below this."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def loaders(self, transform: Callable[[Tensor], Tensor]) -> tuple[EvalLoader, EvalLoader]:
        """Both in batches, in their order, with nothing random; unreadable images are left out."""
        train, test = (EvalLoader(EvalSet(chosen.part, transform), BATCH) for chosen in (self.train, self.test))
        return train, test

    def augmented(
        self, augment: Callable[[Tensor, int], Tensor], *, steps: int, batch_size: int, seed: int
    ) -> DataLoader[Any]:
        """So many batches of augmented training images, epoch after epoch."""
        sampler = EpochSampler(len(self.train), batch_size, seed=seed, steps=steps)
        return loader(TrainSet(self.train, augment, seed), sampler, workers=0)


def open_labelled(
    data: str | Source, *, channels: int, limit: int | None = None, held_out_share: float = 0.0
) -> Labelled:
    """The labeled images of a source, for a probe; see `patchcast.data.Source.labeled`.

    Args:
        data: the source, or one that is open already.
        limit: maximum number of training images, drawn at random.
        held_out_share: what a run on this source held out.
    Raises:
        ValueError: if the source has no labels.
    """
    if not isinstance(data, Source):
        data = open_source(data, channels=channels, held_out_share=held_out_share)
    parts = data.labeled(limit)
    train, test = (Chosen(images, np.arange(len(images))) for images in (parts.train, parts.test))
    return Labelled(train, test, parts.phrase)


def some_of(chosen: Chosen, count: int) -> Chosen:
    """At most so many, drawn once and for all: sources are often sorted by class, or go round the classes."""
    if len(chosen) <= count:
        return chosen
    drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count]
    return Chosen(chosen.images, chosen.index[drawn.numpy()])
