"""`Source`: what one run reads, opened once: images to train on, held-out images, and labeled ones for probes."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from patchcast.data.columns import Columns
from patchcast.data.duplicates import shared_files
from patchcast.data.images import VERIFY_UP_TO, Images, find_splits, open_split
from patchcast.data.names import printable
from patchcast.data.split_names import match_split
from patchcast.data.splits import stratified_split
from patchcast.data.stores import Splits
from patchcast.data.streamed import HeadStore
from patchcast.stages import stage

VALIDATION = ("validation", "val", "valid", "dev")
TEST = ("test", "testing", "eval")
COMPARED_UP_TO = 100_000
"""Largest number of images whose files are compared between both sets: about a second for CIFAR-10's 60,000."""
MOST_HELD_OUT = 2000
"""Largest number of images that are held out of a source without splits."""
JUDGED_SHARE = 0.2
"""Share of a labeled source without splits that probes are judged on."""


def pick_split(splits: Collection[str], prefer: Literal["validation", "test"]) -> str | None:
    """The split of held-out images, by name; None if a source has neither a validation nor a test split.

    Whatever is looked at *during* a run (evaluation loss, pictures) guides decisions, so it prefers validation images
    and leaves test images alone. A *final* number (probes) prefers test images. Each takes the other kind where its own
    is missing. This is the only place that decides it.

    >>> pick_split(["train", "test", "val"], prefer="validation"), pick_split(["train", "test", "val"], prefer="test")
    ('val', 'test')
    >>> pick_split(["train", "Val"], prefer="test"), pick_split(["train"], prefer="test")
    ('Val', None)
    """
    by_name = {split.casefold(): split for split in splits}
    order = (*VALIDATION, *TEST) if prefer == "validation" else (*TEST, *VALIDATION)
    return next((by_name[name] for name in order if name in by_name), None)


@dataclass(frozen=True)
class Part:
    """Some images of a source, and words that say which."""

    images: Images
    phrase: str


@dataclass(frozen=True)
class LabeledParts:
    """Labeled images to fit a probe on, others to judge it by, and words that say which."""

    train: Images
    test: Images
    phrase: str


class Source:
    """A source of images as one run or one command uses it. The source is listed once, and each split is read once.

    >>> source = open_source("digits")
    >>> len(source.train), source.held_out.phrase, len(source.held_out.images), source.labeled().phrase
    (1437, 'images of the test split', 360, 'digits, judged on its test split')

    Attributes:
        data: the source as the user gave it.
        channels: of every image.
        held_out_share: share of the training images that is held out where the source has no other split.
    """

    def __init__(
        self,
        data: str,
        splits: Splits,
        *,
        channels: int | None = None,
        held_out_share: float = 0.0,
        max_pixels: int | None = None,
    ) -> None:
        """See `open_source`."""
        if not 0 <= held_out_share < 1:
            raise ValueError(f"the share of images held out is at least 0 and below 1; got {held_out_share}")
        self.data, self.held_out_share = data, held_out_share
        self._splits, self.max_pixels = splits, max_pixels
        self._opened: dict[str, Images] = {}
        self._all = open_split(splits, data, channels=channels, max_pixels=max_pixels)
        self.channels = self._all.channels

    @property
    def splits(self) -> list[str]:
        """Names of the splits that the source has."""
        return list(self._splits)

    @property
    def is_stream(self) -> bool:
        """Whether images can only be read in order; `train` is then the beginning of the stream."""
        return isinstance(self._all.store, HeadStore)

    @property
    def has_labels(self) -> bool:
        """Whether the training split has labels."""
        return _has_labels(self._all)

    @cached_property
    def train(self) -> Images:
        """The images to train on: the training split without what is held out of it."""
        if not len(self._held_out_index):
            return self._all
        return self._all.subset(np.setdiff1d(np.arange(len(self._all)), self._held_out_index))

    @cached_property
    def held_out(self) -> Part | None:
        """Images that training never sees, for the evaluation loss and for pictures; None if there are none.

        The validation split, or else the test split. Of a source with neither, `held_out_share` of the images: at most
        2,000, drawn with a fixed seed, so that every run on it holds out the same ones. A stream that has no such split
        holds nothing out, since its images are read in order.
        """
        split = pick_split(self._splits, prefer="validation")
        if split is not None:
            return Part(self._open(split), f"images of the {split} split")
        if not len(self._held_out_index):
            return None
        return Part(self._all.subset(self._held_out_index), "images held out from training")

    @property
    def shown(self) -> Part:
        """The images that pictures show: held-out ones, or training images, called so, if there are none."""
        return self.held_out or Part(self.train, "training images")

    def labeled(self, limit: int | None = None, split: str | None = None) -> LabeledParts:
        """Labeled images for a probe: the training split, and the test split or else the validation split.

        Of a source with neither, a fifth of each class is held out from the probe, drawn with a fixed seed. What
        pretraining holds out is a part of that fifth (or all of it and more, if its share is larger), so no probe is
        fitted on images that a run's pictures and evaluation loss call held out. The rest of the fifth was pretrained
        on, without labels. Images without a label are left out, and so are unreadable ones, which the phrase counts. It
        also says how many test images are training images too.

        Args:
            limit: maximum number of training images, drawn at random with a fixed seed.
            split: to judge on instead.
        Raises:
            ValueError: if the source, or the split that is asked for, has no labels, or there is no such split.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"a probe needs at least 1 training image; got a limit of {limit}")
        if not _has_labels(self._all):
            reason = f" ({self._all.no_labels})" if self._all.no_labels else ""
            raise ValueError(f"{self.data} has no labels{reason}, which a probe needs; give --data a labeled source")
        generator = torch.Generator().manual_seed(0)
        by_split = self._judged_by_split() if split is None else self._judged_by(split)
        train, test, phrase = by_split or self._judged_by_share(generator)
        train, test = _with_labels(train), _with_labels(test)
        if limit is not None and limit < len(train):
            train = train.subset(torch.randperm(len(train), generator=generator)[:limit].numpy())
        train, test = _readable(train), _readable(test)
        return LabeledParts(train, test, phrase + _remarks(train, test))

    def _judged_by(self, asked: str) -> tuple[Images, Images, str]:
        """The split that is asked for."""
        split = match_split(asked, self._splits)
        if split is None:
            raise ValueError(f"{self.data} has no split {asked!r}; it has {', '.join(self._splits)}")
        test = self._open(split)
        if test.split == self._all.split:
            others = ", ".join(name for name in self._splits if name != split) or "a source with several"
            raise ValueError(f"the probe is fitted on split {split} of {self.data}; judge on another of {others}")
        if not _has_labels(test):
            raise ValueError(f"the split {split} of {self.data} has no labels, which a probe needs")
        return self._all, test, f"{self.data}, judged on its {split} split"

    def labeled_split(self, split: str) -> Images | None:
        """The labeled, readable images of one split; None if it has no labels."""
        images = self._open(split)
        return _readable(_with_labels(images)) if _has_labels(images) else None

    def _judged_by_split(self) -> tuple[Images, Images, str] | None:
        """The preferred split whose images have labels: some sources have a test split without them."""
        left = list(self._splits)
        while (split := pick_split(left, prefer="test")) is not None:
            test = self._open(split)
            if _has_labels(test):
                return self._all, test, f"{self.data}, judged on its {split} split"
            left.remove(split)
        if len(left) < len(self._splits):
            warnings.warn(
                f"the held-out splits of {self.data} have no labels; a fifth of its training images is judged on",
                stacklevel=3,
            )
        return None

    def _judged_by_share(self, generator: torch.Generator) -> tuple[Images, Images, str]:
        judged = np.union1d(_draw_share(self._all, JUDGED_SHARE, generator), self._held_out_index)
        rest = np.setdiff1d(np.arange(len(self._all)), judged)
        phrase = f"{self.data}, judged on a fifth of it held out"
        return self._all.subset(rest), self._all.subset(judged), phrase

    @cached_property
    def _held_out_index(self) -> Int64[np.ndarray, " H"]:
        """Places of the training split's images that are held out; empty if another split is there."""
        count = min(MOST_HELD_OUT, round(self.held_out_share * len(self._all)), len(self._all) - 1)
        if count < 1 or self.is_stream or pick_split(self._splits, prefer="validation") is not None:
            return np.zeros(0, dtype=np.int64)
        generator = torch.Generator().manual_seed(0)
        judged = _draw_share(self._all, JUDGED_SHARE, generator)
        rest = np.setdiff1d(np.arange(len(self._all)), judged)
        order = [part[torch.randperm(len(part), generator=generator).numpy()] for part in (judged, rest)]
        return np.sort(np.concatenate(order)[:count])

    def _open(self, split: str) -> Images:
        if split not in self._opened:
            self._opened[split] = open_split(
                self._splits, self.data, split=split, channels=self.channels, max_pixels=self.max_pixels
            )
        return self._opened[split]


def open_source(
    data: str,
    *,
    channels: int | None = None,
    held_out_share: float = 0.0,
    image_column: str | None = None,
    label_column: str | None = None,
    max_pixels: int | None = None,
    several_labels: bool = False,
) -> Source:
    """Open a source of images once, with all its splits; `patchcast.data.open_images` opens a single split.

    Args:
        data: see `patchcast.data.open_images`.
        channels: to convert every image to; see there.
        held_out_share: of a source without a validation or test split, the share that is held out from training.
        image_column, label_column: of tables, where they are not recognized by their names.
        max_pixels: of an image; larger ones are unreadable. None: Pillow's limit, 178,956,970.
        several_labels: in tables, read lists of labels as sets of classes; each set is one label here (`cat;dog`).
    Raises:
        ValueError: in one sentence, if the source is not there, or holds no images.
    """
    with stage(f"Listing the images of {data}"):
        splits = find_splits(data, Columns(image_column, label_column, several_labels))
    with stage(f"Reading the headers of images of {data}"):
        return Source(data, splits, channels=channels, held_out_share=held_out_share, max_pixels=max_pixels)


def _has_labels(images: Images) -> bool:
    return images.labels is not None and bool((images.labels >= 0).any())


def _with_labels(images: Images) -> Images:
    labels = images.labels
    assert labels is not None
    return images if (labels >= 0).all() else images.subset(np.flatnonzero(labels >= 0))


def _readable(images: Images) -> Images:
    """Without images that cannot be read. More than 20,000 are not decoded in advance: an `EvalLoader` leaves them out
    as it comes to them."""
    return images if len(images) > VERIFY_UP_TO else images.readable()


def _remarks(train: Images, test: Images) -> str:
    """What a reader of an accuracy has to know about its images: those left out, and those in both sets."""
    left_out = len({bad.path for part in (train, test) for bad in part.unreadable})
    remarks = f"; {left_out:,} unreadable image{'s' * (left_out != 1)} left out" if left_out else ""
    shared = len(shared_files(test, train)) if len(train) + len(test) <= COMPARED_UP_TO else 0
    remarks += f"; {shared:,} of the {len(test):,} test images are training images too" if shared else ""
    return remarks + _unknown_classes(train, test) + _imbalance(test)


def _unknown_classes(train: Images, test: Images) -> str:
    """How many test images no classifier can get right, because no training image has their class."""
    assert train.labels is not None
    assert test.labels is not None
    count = int((~np.isin(test.labels, train.labels)).sum())
    return f"; {count:,} of the {len(test):,} test images are of classes without training images" if count else ""


def _imbalance(test: Images) -> str:
    """The share of the largest class of the test images, where it is twice what equal classes would have: a classifier
    that always answers with that class is as accurate.
    """
    labels = test.labels
    assert labels is not None
    values, counts = np.unique(labels, return_counts=True)
    share, label = counts.max() / len(labels), values[counts.argmax()]
    if len(values) < 2 or share < min(2 / len(values), 0.7):
        return ""
    name = str(label) if test.class_names is None else test.class_names[label]
    return f"; {100 * share:.1f} % of the test images are of class {printable(name)}"


def _draw_share(images: Images, share: float, generator: torch.Generator) -> Int64[np.ndarray, " J"]:
    """Sorted places of a random share: of each class where there are labels. Classes of one image are left whole."""
    labels = images.labels if _has_labels(images) else np.zeros(len(images), dtype=np.int64)
    assert labels is not None
    values, counts = np.unique(labels, return_counts=True)
    places = np.flatnonzero(np.isin(labels, values[counts > 1]))
    if not len(places):
        return places
    drawn = stratified_split(torch.from_numpy(labels[places]), share, generator=generator)[1]
    return places[drawn.numpy()]
