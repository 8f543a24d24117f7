"""The rows of a comparison: each run, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchcast.classification.classifier_folder import is_fine_tuned, open_classifier
from patchcast.classification.training import logits_of
from patchcast.comparison.supervised import SUPERVISED, Measure, train_supervised
from patchcast.data import EvalLoader, EvalSet
from patchcast.evaluation import Interval, accuracy_interval, paired_accuracy_difference
from patchcast.evaluation.feature_protocol import FeatureProtocol, Scores
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.labeled import LOADER_BATCH
from patchcast.evaluation.protocol import points
from patchcast.recipe import Resolved
from patchcast.runs.network import OURS, UNTRAINED
from patchcast.runs.subjects import open_against, subject_of
from patchcast.stages import stage

OTHER = "other network"


@dataclass(frozen=True)
class Row:
    """The results of one network or baseline.

    Attributes:
        run: the run folder that it is or is compared with.
        recipe: of that run, or of another run that is compared with; None for a timm model.
        kind: pretrained, untrained, supervised, other network, or the name of a baseline.
        label: name in the table.
        gained: difference of its linear probe and that of the untrained network, on the same test images.
        own: accuracy of the own classifier of a supervised network or a fine-tuned model.
        own_correct: the test images that the own classifier of a fine-tuned model classifies correctly.
        rate: the chosen learning rate of a supervised run.
    """

    run: Path
    recipe: Resolved | None
    kind: str
    label: str
    scores: Scores
    gained: Interval | None
    own: Interval | None = None
    rate: float | None = None
    own_correct: Tensor | None = None


def rows_of_first(
    measure: Measure, shared: dict[str, Row], supervised: bool, against: Sequence[str]
) -> tuple[Row, list[Row]]:
    """The rows of a run, or of other weights in its place, and of its baselines.

    Rows shared with an earlier run are not measured again.
    """
    network, recipe, run = measure.network, measure.network.recipe, Path(measure.network.name)
    before = network.before()
    channels = network.backbone.channels
    seen_as = f"{network.size} {network.mean} {network.std} {channels} {measure.protocol.description}"
    start = f"{fingerprint(before)} {seen_as}"
    if start not in shared:
        label = f"{UNTRAINED} {network.architecture if recipe is None else recipe.model}"
        shared[start] = Row(run, recipe, UNTRAINED, label, measure(before, UNTRAINED), None)
    others, origin = [shared[start]], shared[start].scores

    def row(kind: str, label: str, scores: Scores, recipe: Resolved | None = recipe, **known: Any) -> Row:
        gained = paired_accuracy_difference(scores.correct, origin.correct)
        return Row(run, recipe, kind, label, scores, gained, **known)

    if recipe is None:
        own = own_classifier(network.name, measure.protocol)
        ours = row(OTHER, network.name, measure(network.backbone, network.name), **own)
    else:
        ours = row(OURS, f"{run.name} ({recipe.method})", measure(network.backbone, OURS))
    if recipe is not None and supervised:
        drawn = f"{recipe.batch_size} {recipe.seed} {recipe.crop_scale} {recipe.flip}"
        budget = f"{SUPERVISED} {start} {recipe.steps} {drawn}"
        if budget not in shared:
            label = f"{SUPERVISED}, {recipe.steps:,} steps"
            with stage(f"{run}: {label} of {recipe.batch_size} images"):
                backbone, correct, rate = train_supervised(before, measure, recipe, budget)
            accuracy = accuracy_interval(correct)
            shared[budget] = row(SUPERVISED, label, measure(backbone, SUPERVISED), own=accuracy, rate=rate)
        others.append(shared[budget])
    for name in against:
        key = f"{OTHER} {name} {measure.protocol.description}"
        if key not in shared:
            other = open_against(name, network)
            with stage(name):
                scores = measure.protocol.measure(subject_of(other))
            shared[key] = row(OTHER, name, scores, other.recipe, **own_classifier(name, measure.protocol))
        others.append(shared[key])
    for name, measure_baseline in measure.protocol.baselines(subject_of(network)):
        key = f"{name} {seen_as}"
        if key not in shared:
            with stage(f"{run}: {name}"):
                shared[key] = row(name, name, measure_baseline())
        others.append(shared[key])
    return ours, others


def own_classifier(words: str, protocol: FeatureProtocol) -> dict[str, Any]:
    """`own` and `own_correct` of a classifier of `patchcast finetune`; empty for other weights and other classes."""
    folder = words.removeprefix("local-dir:")
    if not is_fine_tuned(folder):
        return {}
    tuned, test, device = open_classifier(folder), protocol.labeled.test, protocol.request.device
    names = test.class_names or [str(number) for number in range(protocol.labeled.classes)]
    if tuned.is_multi_label or not {*names} <= {*tuned.names}:
        return {}
    number = torch.tensor([tuned.names.index(name) for name in names])
    batches = EvalLoader(EvalSet(test, tuned.evaluate), LOADER_BATCH)
    with stage(f"{words}: its own classifier"):
        logits, labels = logits_of(tuned.model.to(device), batches, device)
    correct = logits.argmax(dim=1) == number[labels]
    return {"own": accuracy_interval(correct), "own_correct": correct}


def lines_of_classifiers(rows: Sequence[Row]) -> list[str]:
    """The own classifiers of fine-tuned models, compared with a linear classifier on each other network."""
    return [
        f"own classifier of {row.label} vs a linear one on {other.label}: "
        f"{points(paired_accuracy_difference(row.own_correct, other.scores.correct))}"
        for row in rows
        if row.own_correct is not None
        for other in rows
        if other is not row and other.kind in (OURS, OTHER, UNTRAINED)
    ]
