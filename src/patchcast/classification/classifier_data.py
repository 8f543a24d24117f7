"""Labeled images for a classifier: to train on, to choose the best epoch on, and to judge once at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchcast.classification.labeling import ONE_LABEL, Labeling, LabelSets, label_sets
from patchcast.data import Images, Source
from patchcast.data.source import VALIDATION, pick_split
from patchcast.data.splits import stratified_split
from patchcast.evaluation.labeled import labels_of

VALIDATED = 0.2
"""Share of each class that is held out to choose on, where a source has no validation split."""


@dataclass(frozen=True)
class ClassifierData:
    """The three parts, the names of the classes, and words that say which images they are."""

    train: Images
    validation: Images
    test: Images
    names: list[str]
    phrase: str
    labeling: Labeling = ONE_LABEL

    def weights(self) -> Tensor:
        """One for each class, such that all classes count alike in the loss; 0 for a class without an image.

        With label sets it is that of the images of a class, next to 1 for the others.
        """
        if isinstance(self.labeling, LabelSets):
            present = self.labeling.targets(torch.from_numpy(labels_of(self.train))).sum(dim=0)
            return (len(self.train) - present).clamp(min=1) / present.clamp(min=1)
        counts = torch.from_numpy(np.bincount(labels_of(self.train), minlength=len(self.names)))
        filled = int((counts > 0).sum())
        return torch.where(counts > 0, len(self.train) / (filled * counts.clamp(min=1)), 0.0).float()


def classifier_data(
    source: Source, *, per_class: int | None = None, seed: int = 0, multi_label: bool = False
) -> ClassifierData:
    """Split a labeled source for a classifier.

    The test images are those that probes are judged on (`Source.labeled`). The best epoch is chosen on the validation
    split, if there is one besides, or else on a fifth of each class of the training images.

    Args:
        per_class: train on at most this many images of each class, drawn at random.
        seed: of both draws.
        multi_label: the label of an image names any number of classes, with ";" between them.
    Raises:
        ValueError: if there are no labels, one class only, or too few images to choose on.
    """
    parts = source.labeled()
    train, test = parts.train, parts.test
    generator = torch.Generator().manual_seed(seed)
    labels = labels_of(train)
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(train):,} training images of {source.data} are of one class; a classifier needs two"
        )
    if per_class is not None:
        order = torch.randperm(len(train), generator=generator).numpy()
        rank = np.zeros(len(train), dtype=np.int64)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            rank[members] = np.arange(len(members))
        train = train.subset(np.flatnonzero(rank < per_class))
        labels = labels_of(train)
    names = train.class_names or [str(label) for label in range(int(max(labels.max(), labels_of(test).max())) + 1)]
    labeling: Labeling = ONE_LABEL
    if multi_label:
        names, labeling = label_sets(names)
    split = pick_split(source.splits, prefer="validation")
    if split is not None and split.casefold() in VALIDATION and split != test.split:
        validation = source.labeled_split(split)
        if validation is not None:
            phrase = f"{parts.phrase}; chosen on its {split} split"
            return ClassifierData(train, validation, test, names, phrase, labeling)
    values, counts = np.unique(labels, return_counts=True)
    places = np.flatnonzero(np.isin(labels, values[counts > 1]))
    if not len(places):
        raise ValueError(
            f"every class of {source.data} has 1 training image; a classifier is chosen on images that it was not "
            "trained on, which takes at least 2 of a class"
        )
    held = places[stratified_split(torch.from_numpy(labels[places]), VALIDATED, generator=generator)[1].numpy()]
    rest = np.setdiff1d(np.arange(len(train)), held)
    phrase = f"{parts.phrase}; chosen on a fifth of the training images"
    return ClassifierData(train.subset(rest), train.subset(held), test, names, phrase, labeling)
