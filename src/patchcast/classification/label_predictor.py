"""From images to the probability of each class: by a classifier, or by votes of labeled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from patchcast.classification.classifier_folder import open_classifier
from patchcast.data import EvalLoader, EvalSet, Evaluate, open_source
from patchcast.evaluation.features import extract, fingerprint
from patchcast.evaluation.knn import TEMPERATURE
from patchcast.evaluation.labeled import paths_of
from patchcast.runs.network import open_network
from patchcast.runs.subjects import feature_cache


@dataclass(frozen=True)
class LabelPredictor:
    """From images to the probability of each class.

    Attributes:
        module: on whose device the images have to be.
        how: in words, for people.
        depends_on: all that the probabilities depend on besides the images.
        is_multi_label: an image may be of any number of classes; those of at least one half are its labels.
    """

    module: nn.Module
    names: list[str]
    evaluate: Evaluate
    channels: int
    compute: Callable[[Tensor], Tensor]
    how: str
    depends_on: str
    is_multi_label: bool = False


def classifier_predictor(folder: str | Path, device: str) -> LabelPredictor:
    """The classifier of a folder.

    Raises:
        ValueError: if the folder holds none that can be read.
    """
    tuned = open_classifier(folder)
    model = tuned.model.to(device)
    how = f"{len(tuned.names)} classes of {folder}"
    return LabelPredictor(
        model,
        tuned.names,
        tuned.evaluate,
        tuned.channels,
        lambda images: tuned.probabilities(model(images)),
        how,
        fingerprint(model),
        tuned.is_multi_label,
    )


def voting_predictor(source: str, data: str, device: str, *, neighbors: int, batch_size: int) -> LabelPredictor:
    """Labeled images vote by the similarity of their features, as in the kNN probe.

    Args:
        source: a run's folder, or other weights by the words of `--start`.
        data: the labeled images.
    Raises:
        ValueError: if there are no labels, or one of both cannot be opened.
    """
    network = open_network(source)
    backbone, evaluate = network.backbone, network.evaluate
    labeled = open_source(data, channels=backbone.channels).labeled_split("train")
    if labeled is None:
        raise ValueError(f"{data} has no labels, which are to vote")
    features = extract(
        backbone, EvalLoader(EvalSet(labeled, evaluate), batch_size), device=device, cache=feature_cache()
    )
    reference, labels = F.normalize(features.x, dim=1).to(device), features.labels.to(device)
    names = labeled.class_names or [str(label) for label in range(int(labels.max()) + 1)]
    neighbors = min(neighbors, len(labels))

    def vote(images: Tensor) -> Tensor:
        near = F.normalize(backbone.pool(images).float(), dim=1) @ reference.T
        similarity, index = near.topk(neighbors, dim=1)
        weights = (similarity.double() / TEMPERATURE).softmax(dim=1)
        return weights.new_zeros(len(images), len(names)).scatter_add_(1, labels[index], weights)

    how = f"votes of the {neighbors} nearest of {len(labels):,} labeled images of {data}"
    depends_on = fingerprint([fingerprint(backbone), *paths_of(labeled), *map(str, labels.tolist()), str(neighbors)])
    return LabelPredictor(backbone, names, evaluate, backbone.channels, vote, how, depends_on)
