"""The rows of a comparison: each run, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcast.comparison.supervised import SUPERVISED, Measure, train_supervised
from patchcast.evaluation import (
    Interval,
    accuracy_interval,
    paired_accuracy_difference,
)
from patchcast.evaluation.feature_protocol import Scores
from patchcast.evaluation.features import fingerprint
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
        own: accuracy of a supervised network's own classifier.
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


def rows_of_run(
    measure: Measure, shared: dict[str, Row], supervised: bool, against: Sequence[str]
) -> tuple[Row, list[Row]]:
    """The rows of a run and its baselines; rows shared with an earlier run are not measured again."""
    network, recipe, run = measure.network, measure.recipe, Path(measure.network.name)
    before = network.before()
    seen_as = f"{network.size} {recipe.mean} {recipe.std} {recipe.channels} {measure.protocol.description}"
    start = f"{fingerprint(before)} {seen_as}"
    if start not in shared:
        label = f"{UNTRAINED} {recipe.model}"
        shared[start] = Row(run, recipe, UNTRAINED, label, measure(before, UNTRAINED), None)
    others, origin = [shared[start]], shared[start].scores

    def row(kind: str, label: str, scores: Scores, recipe: Resolved | None = recipe, **known: Any) -> Row:
        gained = paired_accuracy_difference(scores.correct, origin.correct)
        return Row(run, recipe, kind, label, scores, gained, **known)

    ours = row(OURS, f"{run.name} ({recipe.method})", measure(network.backbone, OURS))
    budget = f"{SUPERVISED} {start} {recipe.steps} {recipe.batch_size} {recipe.seed} {recipe.crop_scale} {recipe.flip}"
    if supervised and budget not in shared:
        label = f"{SUPERVISED}, {recipe.steps:,} steps"
        with stage(f"{run}: {label} of {recipe.batch_size} images"):
            backbone, correct, rate = train_supervised(before, measure, budget)
        own = accuracy_interval(correct)
        shared[budget] = row(SUPERVISED, label, measure(backbone, SUPERVISED), own=own, rate=rate)
    if supervised:
        others.append(shared[budget])
    for name in against:
        key = f"{OTHER} {name} {measure.protocol.description}"
        if key not in shared:
            other = open_against(name, network)
            with stage(name):
                scores = measure.protocol.measure(subject_of(other))
            shared[key] = row(OTHER, name, scores, other.recipe)
        others.append(shared[key])
    for name, measure_baseline in measure.protocol.baselines(subject_of(network)):
        key = f"{name} {seen_as}"
        if key not in shared:
            with stage(f"{run}: {name}"):
                shared[key] = row(name, name, measure_baseline())
        others.append(shared[key])
    return ours, others
