"""`patchcast compare`: runs and their baselines in one table and one parquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from patchcast import options
from patchcast.backbones import Backbone
from patchcast.backbones.capabilities import DEFAULT_READOUT, READ_AS, Readout
from patchcast.classification.classifier_folder import is_fine_tuned, open_classifier
from patchcast.classification.training import logits_of
from patchcast.commands.probe import feature_cache, open_against, subject_of
from patchcast.data import EvalLoader, EvalSet
from patchcast.data.fingerprint import fingerprint_images
from patchcast.data.names import escape
from patchcast.data.seals import matches_seal, seal
from patchcast.evaluation import (
    FinetuneResult,
    Interval,
    accuracy_interval,
    finetune,
    paired_accuracy_difference,
    stratified_split,
)
from patchcast.evaluation.baselines import BASELINES
from patchcast.evaluation.feature_protocol import FeatureProtocol, Scores, versus
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.finetune_protocol import PRECISION
from patchcast.evaluation.labeled import LOADER_BATCH, Labeled, labels_of
from patchcast.evaluation.protocol import Request, new_table, percent, points
from patchcast.files import cache_folder, check_writable, write_weights, write_whole
from patchcast.recipe import Device, Resolved
from patchcast.runs.network import OURS, UNTRAINED, Network, is_run, open_network, torch_device
from patchcast.stages import stage

SUPERVISED = "supervised"
OTHER = "other network"
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates to choose from for supervised runs."""


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
        own_correct: the test images that it classifies correctly.
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


def compare(
    runs: Sequence[Path],
    *,
    data: str | None,
    out: Path,
    per_class: Sequence[int],
    draws: int,
    limit: int | None,
    supervised: bool = True,
    against: Sequence[str] = (),
    readout: Readout = DEFAULT_READOUT,
    device: Device = "auto",
    cache: bool = True,
) -> list[Row]:
    """Probe every run, its untrained network, a supervised run of the same budget and baselines; write a table.

    Rows that several runs share (the same untrained network or supervised run) are measured and shown once. A model of
    `patchcast finetune` is probed as other weights are, and its own classifier is measured on the same test images.

    Args:
        runs: run folders; other words of `--start` among them are compared as those of `against` are. Without a run,
            the first of them takes its place.
        against: further networks, by the words of `--start`.
        readout: how units become one feature, in every row.
    Raises:
        ValueError: for anything that the user can fix.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet; got {out}")
    check_writable(out)
    firsts = [run for run in runs if is_run(run)] or list(runs[:1])
    against = [*map(str, (words for words in runs if words not in firsts)), *against]
    if data is None and not is_run(firsts[0]):
        raise ValueError(f"{firsts[0]} is no run, which has data of its own: give --data LABELED")
    chosen = options.FeatureOptions(per_class=list(per_class), draws=draws, readout=readout, cache=cache)
    console, rows, lines, shared = Console(), list[Row](), list[str](), dict[str, Row]()
    for run in firsts:
        network = open_network(run)
        source = data or network.recipe.data if network.recipe is not None else data
        assert source is not None
        request = Request(
            source,
            network.backbone.channels,
            limit=limit,
            device=torch_device(device),
            cache=feature_cache(),
            held_out_share=network.held_out_share(source),
        )
        protocol = FeatureProtocol(chosen, request, subject_of(network))
        ours, others = _rows(Measure(network, protocol, console), shared, supervised, against)
        lines += [f"{ours.label} vs {other.label}: {versus(ours.scores, other.scores)}" for other in others]
        rows += [ours, *(other for other in others if other not in rows)]
    lines += _lines_of_classifiers(rows)
    console.print(results_table(rows, f"{protocol.description}; a network's feature is {READ_AS[readout]}"))
    for line in lines:
        console.print(line, highlight=False)
    write_rows(rows, protocol.labeled, out)
    console.print(f"Written to {escape(out)}: {len(rows)} rows.")
    return rows


@dataclass(frozen=True)
class Measure:
    """How a run and its baselines are measured."""

    network: Network
    protocol: FeatureProtocol
    console: Console

    def __call__(self, backbone: Backbone, status: str) -> Scores:
        with stage(f"{self.network.name}: {status}"):
            scores = self.protocol.measure(subject_of(self.network, backbone))
        backbone.cpu()
        return scores


def _rows(measure: Measure, shared: dict[str, Row], supervised: bool, against: Sequence[str]) -> tuple[Row, list[Row]]:
    """The rows of a run and its baselines; rows shared with an earlier run are not measured again."""
    network, recipe, run = measure.network, measure.network.recipe, Path(measure.network.name)
    before = network.before()
    seen_as = f"{network.size} {network.mean} {network.std} {network.backbone.channels} {measure.protocol.description}"
    start = f"{fingerprint(before)} {seen_as}"
    if start not in shared:
        label = f"{UNTRAINED} {network.architecture if recipe is None else recipe.model}"
        shared[start] = Row(run, recipe, UNTRAINED, label, measure(before, UNTRAINED), None)
    others, origin = [shared[start]], shared[start].scores

    def row(kind: str, label: str, scores: Scores, recipe: Resolved | None = recipe, **known: Any) -> Row:
        gained = paired_accuracy_difference(scores.correct, origin.correct)
        return Row(run, recipe, kind, label, scores, gained, **known)

    if recipe is None:
        own = _own_classifier(network.name, measure.protocol)
        ours = row(OTHER, network.name, measure(network.backbone, network.name), **own)
        return ours, [
            *others,
            *_other_rows(measure, shared, against, row),
            *_baseline_rows(measure, shared, seen_as, row),
        ]
    ours = row(OURS, f"{run.name} ({recipe.method})", measure(network.backbone, OURS))
    budget = f"{SUPERVISED} {start} {recipe.steps} {recipe.batch_size} {recipe.seed} {recipe.crop_scale} {recipe.flip}"
    if supervised and budget not in shared:
        label = f"{SUPERVISED}, {recipe.steps:,} steps"
        with stage(f"{run}: {label} of {recipe.batch_size} images"):
            backbone, correct, rate = train_supervised(before, measure, budget)
        accuracy = accuracy_interval(correct)
        shared[budget] = row(SUPERVISED, label, measure(backbone, SUPERVISED), own=accuracy, rate=rate)
    if supervised:
        others.append(shared[budget])
    others += [*_other_rows(measure, shared, against, row), *_baseline_rows(measure, shared, seen_as, row)]
    return ours, others


MakeRow = Callable[..., Row]


def _other_rows(measure: Measure, shared: dict[str, Row], against: Sequence[str], row: MakeRow) -> Iterator[Row]:
    """Rows of further networks."""
    for name in against:
        key = f"{OTHER} {name} {measure.protocol.description}"
        if key not in shared:
            other = open_against(name, measure.network)
            with stage(name):
                scores = measure.protocol.measure(subject_of(other))
            shared[key] = row(OTHER, name, scores, other.recipe, **_own_classifier(name, measure.protocol))
        yield shared[key]


def _baseline_rows(measure: Measure, shared: dict[str, Row], seen_as: str, row: MakeRow) -> Iterator[Row]:
    """Rows without a network."""
    for name, measure_baseline in measure.protocol.baselines(subject_of(measure.network)):
        key = f"{name} {seen_as}"
        if key not in shared:
            with stage(f"{measure.network.name}: {name}"):
                shared[key] = row(name, name, measure_baseline())
        yield shared[key]


def _own_classifier(words: str, protocol: FeatureProtocol) -> dict[str, Any]:
    """`own` and `own_correct` of a classifier of `patchcast finetune`; empty for other weights and other classes."""
    folder = words.removeprefix("local-dir:")
    if not is_fine_tuned(folder):
        return {}
    tuned, test, device = open_classifier(folder), protocol.labeled.test, protocol.request.device
    names = test.class_names or [str(number) for number in range(protocol.labeled.classes)]
    if tuned.is_multi_label or not {*names} <= {*tuned.names}:
        return {}
    number = torch.tensor([tuned.names.index(name) for name in names])
    with stage(f"{words}: its own classifier"):
        logits, labels = logits_of(
            tuned.model.to(device), EvalLoader(EvalSet(test, tuned.evaluate), LOADER_BATCH), device
        )
    correct = logits.argmax(dim=1) == number[labels]
    return {"own": accuracy_interval(correct), "own_correct": correct}


def _lines_of_classifiers(rows: Sequence[Row]) -> list[str]:
    """The own classifiers of fine-tuned models, compared with a linear classifier on the other networks."""
    lines = []
    for row in rows:
        if row.own_correct is not None and row.kind == OTHER:
            for other in rows:
                if other is not row and other.kind in (OURS, OTHER, UNTRAINED):
                    gained = paired_accuracy_difference(row.own_correct, other.scores.correct)
                    lines.append(f"own classifier of {row.label} vs a linear one on {other.label}: {points(gained)}")
    return lines


def train_supervised(start: Backbone, measure: Measure, budget: str) -> tuple[Backbone, Tensor, float]:
    """The network trained with labels from the same start, for the run's steps, batches and augmentation.

    All weights are trained by AdamW, with the same rate for all blocks. The result is cached in the user's cache
    folder, because training takes longer than pretraining.

    Returns:
        the backbone, True for test images that its own classifier predicts correctly, and the learning rate.
    """
    recipe, labeled = measure.network.recipe, measure.protocol.labeled
    assert recipe is not None
    which = [budget, *(fingerprint_images(images).hex() for images in (labeled.train, labeled.test))]
    file = cache_folder() / SUPERVISED / f"{fingerprint(which)}.safetensors"
    if matches_seal(file):
        state = load_file(file)
        correct, rate = state.pop("correct"), float(state.pop("rate"))
        start.load_state_dict(state)
        return start, correct, rate
    rate = choose_rate(start, measure, recipe)
    result = _train(start, measure, labeled, recipe, steps=recipe.steps, rate=rate)
    backbone = result.model.backbone.cpu()
    state = {name: value.contiguous().clone() for name, value in backbone.state_dict().items()}
    beside = {"correct": result.correct, "rate": torch.tensor(rate, dtype=torch.float64)}
    write_weights({**state, **beside}, file)
    seal(file)
    return backbone, result.correct, rate


def choose_rate(start: Backbone, measure: Measure, recipe: Resolved) -> float:
    """The best rate on a fifth of the training images, after a quarter of the steps on the others.

    With a fixed rate, this baseline could be too weak: on digits, 400 steps of 64 images reached 62.8 % at 1e-3, and
    75.0 % at 3e-3.
    """
    train = measure.protocol.labeled.train
    generator = torch.Generator().manual_seed(recipe.seed)
    fit, held = stratified_split(torch.from_numpy(labels_of(train)), 0.2, generator=generator)
    trial = Labeled(train.subset(fit.numpy()), train.subset(held.numpy()), measure.protocol.description)
    steps = max(1, recipe.steps // 4)
    accuracy = {rate: _train(start, measure, trial, recipe, steps=steps, rate=rate).accuracy for rate in RATES}
    return max(accuracy, key=lambda rate: (accuracy[rate], -rate))


def _train(
    start: Backbone, measure: Measure, labeled: Labeled, recipe: Resolved, *, steps: int, rate: float
) -> FinetuneResult:
    network = measure.network
    return finetune(
        start,
        labeled.augmented(network.augment, steps=steps, batch_size=recipe.batch_size, seed=recipe.seed),
        labeled.loaders(network.evaluate)[1],
        classes=measure.protocol.labeled.classes,
        lr=rate,
        layer_decay=1.0,
        seed=recipe.seed,
        device=measure.protocol.request.device,
        precision=PRECISION[measure.protocol.request.device],
    )


def results_table(rows: Sequence[Row], description: str) -> Table:
    """One row per network or baseline, in per cent, with 95 % intervals."""
    shown = new_table(description, "network", "kNN", "linear", "RankMe")
    for row in rows:
        rank = "" if row.scores.rankme is None else f"{row.scores.rankme:.1f}"
        shown.add_row(row.label, f"{100 * row.scores.knn.accuracy:.1f}", percent(row.scores.accuracy), rank)
    own = [f"{row.label} {percent(row.own)}" for row in rows if row.own is not None]
    classifiers = f" Own classifiers: {'; '.join(own)}." if own else ""
    shown.caption = escape(
        "Linear classifier on all labels. 95 % intervals over the test images; differences on the same test images and "
        f"on the same draws of labels. They do not cover the seed.{classifiers}"
    )
    return shown


def write_rows(rows: Sequence[Row], labeled: Labeled, out: Path) -> None:
    """Write every number of every row; accuracies are in [0, 1]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda unfinished: pq.write_table(pa.Table.from_pylist(_plain(rows, labeled)), unfinished))


def _plain(rows: Sequence[Row], labeled: Labeled) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for row in rows:
        scores, recipe = row.scores, row.recipe if row.kind not in BASELINES else None
        is_ours = row.kind in (OURS, OTHER)
        values: dict[str, Any] = {
            "run": str(row.run),
            "network": row.label,
            "kind": row.kind,
            "method": recipe.method if recipe and is_ours else None,
            "model": recipe.model if recipe else row.label if is_ours else None,
            "seed": recipe.seed if recipe else None,
            "steps": recipe.steps if recipe and row.kind != UNTRAINED else None,
            "batch_size": recipe.batch_size if recipe and row.kind != UNTRAINED else None,
            "lr": recipe.lr if recipe and is_ours else row.rate,
            "data": labeled.description,
            "train_images": len(labeled.train),
            "test_images": len(labeled.test),
            "k": scores.knn.k,
            "knn_standardized": scores.knn.standardized,
            "strength": scores.linear.strength,
            "rankme": scores.rankme,
            "alpha_req": scores.alpha_req,
        }
        intervals: dict[str, Interval | None] = {
            "knn": accuracy_interval(scores.knn.correct),
            "linear": scores.accuracy,
            "over_untrained": row.gained,
            "own_classifier": row.own,
            **{f"few_{few.per_class}": few.interval for few in scores.few},
        }
        for name, interval in intervals.items():
            value, low, high = (None, None, None) if interval is None else interval
            values |= {name: value, f"{name}_low": low, f"{name}_high": high}
        table.append(values)
    return table
