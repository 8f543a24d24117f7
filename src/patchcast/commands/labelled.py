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

from patchcast.data import EpochSampler, EvalLoader, EvalSet, Images, TrainSet, loader, open_images
from patchcast.data.duplicates import shared_files
from patchcast.data.images import VERIFY_UP_TO, Example
from patchcast.evaluation import stratified_split

BATCH = 256
COMPARED_UP_TO = 100_000
"""Images up to which the files of both splits are compared: of CIFAR-10's 60,000 in about a second."""
JUDGING = ("test", "validation", "val")
"""Splits to judge by, the first that there is."""


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


def open_labelled(data: str, *, channels: int, limit: int | None = None) -> Labelled:
    """The training split of a source, and its test or validation split, or a fifth held out where it has none.

    Args:
        limit: at most so many training images, drawn at random.
    Raises:
        ValueError: if the source has no labels.
    """
    images = open_images(data, channels=channels)
    if images.labels is None:
        raise ValueError(f"{data} has no labels, which a probe needs; give --data a labelled source")
    held_out = [split for split in JUDGING if split in images.splits]
    generator = torch.Generator().manual_seed(0)
    index = np.arange(len(images))
    if held_out:
        other = open_images(data, split=held_out[0], channels=channels)
        if other.labels is None:
            raise ValueError(f"the {held_out[0]} split of {data} has no labels, which a probe needs")
        test = Chosen(other, np.arange(len(other)))
        told = f"{data}, judged on its {held_out[0]} split"
    else:
        fit, judge = stratified_split(torch.from_numpy(images.labels), 0.2, generator=generator)
        index, test = fit.numpy(), Chosen(images, judge.numpy())
        told = f"{data}, judged on a fifth of it held out"
    if limit is not None and limit < len(index):
        index = index[torch.randperm(len(index), generator=generator)[:limit].numpy()]
    train, test = _readable(Chosen(images, index)), _readable(test)
    return Labelled(train, test, told + remarks(train.part, test.part))


def _readable(chosen: Chosen) -> Chosen:
    """Without images that cannot be read. More than 20,000 are not decoded in advance: their loader leaves them out."""
    if len(chosen) > VERIFY_UP_TO:
        return chosen
    readable = chosen.part.readable()
    return Chosen(readable, np.arange(len(readable)))


def remarks(train: Images, test: Images) -> str:
    """What a reader of an accuracy has to know about its images: those left out, and those in both sets."""
    left_out = len({bad.path for part in (train, test) for bad in part.unreadable})
    found = f"; {left_out:,} unreadable image{'s' * (left_out != 1)} left out" if left_out else ""
    if len(train) + len(test) > COMPARED_UP_TO:
        return found
    shared = len(shared_files(test, train))
    return found + (f"; {shared:,} of the {len(test):,} test images are training images too" if shared else "")


def some_of(chosen: Chosen, count: int) -> Chosen:
    """At most so many, drawn once and for all: sources are often sorted by class, or go round the classes."""
    if len(chosen) <= count:
        return chosen
    drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count]
    return Chosen(chosen.images, chosen.index[drawn.numpy()])
