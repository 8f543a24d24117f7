"""`patchcast compare`: runs beside what they have to beat, in one table and one parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchcast.backbones import Backbone
from patchcast.commands.finetune import PRECISION
from patchcast.commands.labelled import Chosen, Labelled
from patchcast.commands.probe import PIXELS, Scores, feature_cache, labelled_for, score, score_pixels
from patchcast.evaluation import (
    FinetuneResult,
    Interval,
    accuracy_interval,
    extract,
    finetune,
    paired_accuracy_difference,
    stratified_split,
)
from patchcast.evaluation.features import fingerprint
from patchcast.files import cache_folder, write_whole
from patchcast.recipe import Device, Resolved
from patchcast.runs.network import OURS, UNTRAINED, Network, is_run, open_network, torch_device

SUPERVISED = "supervised"
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates that a supervised run may choose from."""


@dataclass(frozen=True)
class Row:
    """One network, or the pixels, and what was found in its features.

    Attributes:
        run: the run folder that it is, or stands beside.
        kind: pretrained, untrained, supervised or raw pixels.
        gained: by how much its linear probe beats that of the untrained network, on the same test images.
        own: accuracy of the classifier that a supervised network was trained with.
        rate: the learning rate that a supervised run chose.
    """

    run: Path
    recipe: Resolved
    kind: str
    scores: Scores
    gained: Interval | None
    own: Interval | None = None
    rate: float | None = None


def compare(
    runs: Sequence[Path],
    *,
    data: str | None,
    out: Path,
    per_class: Sequence[int],
    draws: int,
    limit: int | None,
    supervised: bool = True,
    device: Device = "auto",
    cached: bool = True,
) -> list[Row]:
    """Probe every run, its start, a supervised run of the same budget, and raw pixels; print a table and write it.

    What several runs share (the same start, the same supervised run) is measured and shown once.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
    """
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet; got {out}")
    if strange := [run for run in runs if not is_run(run)]:
        raise ValueError(f"{strange[0]} holds no run of patchcast: it has no config.yaml")
    console, where = Console(), torch_device(device)
    rows: list[Row] = []
    shared: dict[str, Row] = {}
    for run in runs:
        network = open_network(run)
        labelled = labelled_for(network, data, limit)
        measure = Measure(network, labelled, per_class, draws, where, feature_cache() if cached else None)
        for row in _beside(run, measure, shared, supervised, console):
            rows.append(row)
    console.print(table(rows, labelled.told))
    write_parquet(rows, labelled, out)
    console.print(f"Written to {out}: {len(rows)} rows.")
    return rows


@dataclass(frozen=True)
class Measure:
    """How features are made of images and probed, for one run and all that it is compared with."""

    network: Network
    labelled: Labelled
    per_class: Sequence[int]
    draws: int
    device: str
    cache: Path | None

    def __call__(self, backbone: Backbone) -> Scores:
        loaders = self.labelled.loaders(self.network.evaluate)
        train, test = (extract(backbone, each, device=self.device, cache=self.cache) for each in loaders)
        backbone.cpu()
        return score(train, test, per_class=self.per_class, draws=self.draws, device=self.device)

    def pixels(self) -> Scores:
        return score_pixels(self.network, self.labelled, per_class=self.per_class, draws=self.draws, device=self.device)


def _beside(run: Path, measure: Measure, shared: dict[str, Row], supervised: bool, console: Console) -> list[Row]:
    """The rows of one run, without those that an earlier one has."""
    recipe = measure.network.recipe
    assert recipe is not None
    before = measure.network.before()
    seen_as = f"{measure.network.size} {recipe.mean} {recipe.std} {recipe.channels}"
    start, pixels = f"{fingerprint(before)} {seen_as}", f"{PIXELS} {seen_as}"
    found: list[Row] = []
    if start not in shared:
        with console.status(f"{run}: {UNTRAINED}"):
            shared[start] = Row(run, recipe, UNTRAINED, measure(before), None)
        found.append(shared[start])
    origin = shared[start].scores

    def gained(scores: Scores) -> Interval:
        return paired_accuracy_difference(scores.correct, origin.correct)

    with console.status(f"{run}: {OURS}"):
        scores = measure(measure.network.backbone)
    found.insert(0, Row(run, recipe, OURS, scores, gained(scores)))
    budget = f"{SUPERVISED} {start} {recipe.steps} {recipe.batch_size} {recipe.seed} {recipe.crop_scale} {recipe.flip}"
    if supervised and budget not in shared:
        with console.status(f"{run}: {SUPERVISED}, {recipe.steps:,} steps of {recipe.batch_size} images"):
            backbone, correct, rate = train_supervised(before, measure, budget)
            scores = measure(backbone)
        shared[budget] = Row(run, recipe, SUPERVISED, scores, gained(scores), accuracy_interval(correct), rate)
        found.append(shared[budget])
    if pixels not in shared:
        with console.status(f"{run}: {PIXELS}"):
            scores = measure.pixels()
        shared[pixels] = Row(run, recipe, PIXELS, scores, gained(scores))
        found.append(shared[pixels])
    return found


def train_supervised(start: Backbone, measure: Measure, budget: str) -> tuple[Backbone, Tensor, float]:
    """The network trained with labels from the same start, for the run's steps, batches and augmentation.

    Every weight, by AdamW, at one rate for all blocks. The result is kept in the user's cache folder, as it takes
    longer than pretraining.

    Returns:
        the backbone, which test images its own classifier told right, and the learning rate.
    """
    recipe, labelled = measure.network.recipe, measure.labelled
    assert recipe is not None
    images = [labelled.train.images.store.path(int(place)) for place in labelled.train.images.positions]
    which = [budget, labelled.told, *images, f"{labelled.train.index.tolist()} {labelled.train.labels.tolist()}"]
    file = cache_folder() / SUPERVISED / f"{fingerprint(which)}.safetensors"
    if file.exists():
        state = load_file(file)
        correct, rate = state.pop("correct"), float(state.pop("rate"))
        start.load_state_dict(state)
        return start, correct, rate
    rate = choose_rate(start, measure, recipe)
    result = _train(start, measure, labelled, recipe, steps=recipe.steps, rate=rate)
    backbone = result.model.backbone.cpu()
    state = {name: value.contiguous().clone() for name, value in backbone.state_dict().items()}
    beside = {"correct": result.correct, "rate": torch.tensor(rate, dtype=torch.float64)}
    write_whole(file, lambda unfinished: save_file({**state, **beside}, unfinished))
    return backbone, result.correct, rate


def choose_rate(start: Backbone, measure: Measure, recipe: Resolved) -> float:
    """The rate that does best on a fifth of the training images, after a quarter of the steps on the others.

    At one rate for all, this baseline would be as weak as the rate is wrong: on digits, 400 steps of 64 images told
    62.8 % right at 1e-3, and 75.0 % at 3e-3.
    """
    train = measure.labelled.train
    generator = torch.Generator().manual_seed(recipe.seed)
    fit, held = stratified_split(torch.from_numpy(train.labels), 0.2, generator=generator)
    fitted, judged = Chosen(train.images, train.index[fit.numpy()]), Chosen(train.images, train.index[held.numpy()])
    trial = Labelled(fitted, judged, measure.labelled.told)
    steps = max(1, recipe.steps // 4)
    found = {rate: _train(start, measure, trial, recipe, steps=steps, rate=rate).accuracy for rate in RATES}
    return max(found, key=lambda rate: (found[rate], -rate))


def _train(
    start: Backbone, measure: Measure, labelled: Labelled, recipe: Resolved, *, steps: int, rate: float
) -> FinetuneResult:
    network = measure.network
    return finetune(
        start,
        labelled.augmented(network.augment, steps=steps, batch_size=recipe.batch_size, seed=recipe.seed),
        labelled.loaders(network.evaluate)[1],
        classes=measure.labelled.classes,
        lr=rate,
        layer_decay=1.0,
        seed=recipe.seed,
        device=measure.device,
        precision=PRECISION[measure.device],
    )


def table(rows: Sequence[Row], told: str) -> Table:
    """One row for each network, in per cent, with 95 % intervals."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {told}", title_justify="left", title_style="bold")
    shown.add_column("network")
    for name in ("kNN", "linear", "over untrained", "RankMe"):
        shown.add_column(name, justify="right")
    for row in rows:
        gain = "" if row.gained is None else _percent(row.gained, "+.1f")
        rank = "" if row.scores.rankme is None else f"{row.scores.rankme:.1f}"
        linear = _percent(row.scores.accuracy)
        shown.add_row(told_of(row), f"{100 * row.scores.knn.accuracy:.1f}", linear, gain, rank)
    own = [row.own for row in rows if row.own is not None]
    classifiers = f" The supervised network's own classifier: {', '.join(map(_percent, own))}." if own else ""
    shown.caption = (
        "Linear classifier on all labels. 95 % intervals over the test images; differences on the same test images. "
        f"They do not cover the seed.{classifiers}"
    )
    shown.caption_justify = "left"
    return shown


def told_of(row: Row) -> str:
    """A row by its name."""
    recipe = row.recipe
    return {
        OURS: f"{row.run.name} ({recipe.method})",
        UNTRAINED: f"{UNTRAINED} {recipe.model}",
        SUPERVISED: f"{SUPERVISED}, {recipe.steps:,} steps",
        PIXELS: PIXELS,
    }[row.kind]


def write_parquet(rows: Sequence[Row], labelled: Labelled, out: Path) -> None:
    """Every number of every row, accuracies as shares."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda unfinished: pq.write_table(pa.Table.from_pylist(_plain(rows, labelled)), unfinished))


def _plain(rows: Sequence[Row], labelled: Labelled) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for row in rows:
        recipe, scores, is_network = row.recipe, row.scores, row.kind != PIXELS
        values: dict[str, Any] = {
            "run": str(row.run),
            "kind": row.kind,
            "method": recipe.method if row.kind == OURS else None,
            "model": recipe.model if is_network else None,
            "seed": recipe.seed if is_network else None,
            "steps": recipe.steps if row.kind in (OURS, SUPERVISED) else None,
            "batch_size": recipe.batch_size if row.kind in (OURS, SUPERVISED) else None,
            "lr": recipe.lr if row.kind == OURS else row.rate,
            "data": labelled.told,
            "train_images": len(labelled.train),
            "test_images": len(labelled.test),
            "k": scores.knn.k,
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


def _percent(interval: Interval, form: str = ".1f") -> str:
    value, low, high = (format(100 * each, form) for each in interval)
    return f"{value} [{low}, {high}]"
