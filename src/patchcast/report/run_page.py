"""The page about one run."""

from __future__ import annotations

import shlex

from patchcast.arguments import words_of
from patchcast.folder_files import CONFIG
from patchcast.recipe import Recipe
from patchcast.report.charts import Curve, chart_over_steps
from patchcast.report.page import (
    Html,
    Section,
    Tile,
    commands,
    definitions,
    folded,
    page,
    page_footer,
    side_by_side,
)
from patchcast.report.picture_sections import picture_sections
from patchcast.report.probe_sections import accuracy_sections, difference_of, few_label_sections, layer_sections
from patchcast.report.run_numbers import RunNumbers
from patchcast.report.shares import percent_of
from patchcast.runs.network import OURS, UNTRAINED
from patchcast.runs.results import probes_from_start
from patchcast.training.probing import PROBE_NAMES
from patchcast.training.progress import duration

LINE = 110  # maximum number of letters of a command on one line


def run_page(found: RunNumbers, data: str) -> str:
    """The HTML of the page."""
    sections = [
        _learning(found),
        *few_label_sections(found),
        *accuracy_sections(found),
        *layer_sections(found),
        *picture_sections(found, data),
        _cost(found),
        _again(found),
    ]
    recipe = found.recipe
    subtitle = (
        f"{recipe.steps:,} steps of {recipe.batch_size} images of {recipe.data}, without labels. "
        f"Folder: {found.run.folder}"
    )
    title = f"{recipe.method} on {recipe.model}"
    return page(title, subtitle, _headline(found), sections, page_footer(), answers=_answers(found))


def _answers(found: RunNumbers) -> Html:
    """What was trained, whether it is better than what costs nothing, and what it cost."""
    recipe, speed, probe = found.recipe, found.speed, found.probes.get("probe", {})
    start = f", from the weights {recipe.start_words}" if recipe.start_words else ""
    trained = (
        f"{recipe.model} with {recipe.method} on {recipe.data}, without labels{start}: "
        f"{recipe.steps * recipe.batch_size:,} images seen in {recipe.steps:,} steps."
    )
    gained = probe.get("differences", {})
    if not gained:
        better = found.demo.get("summary") or "Not known yet: only labels can tell. The command is below, under Probes."
    else:
        named = {name: difference_of(name, points).partition(": ")[2].rstrip(".") for name, points in gained.items()}
        ahead = [f"{name} ({named[name]})" for name in gained if gained[name]["low"] > 0]
        rest = [f"{name} ({named[name]})" for name in gained if gained[name]["low"] <= 0]
        better = f"{'Better than ' + ', '.join(ahead) if ahead else 'Better than nothing that it was compared with'}."
        better += f" Not better than {', '.join(rest)}." if rest else ""
        better += f" Linear classifier on {probe.get('data', '')}."
    cost = f"About {duration(found.seconds)} of training, at {speed:,.0f} images a second" if speed else "Not logged"
    devices = recipe.devices * recipe.nodes
    cost += f"{f', on {devices} devices' if devices > 1 else ''}, in {recipe.precision}."
    return definitions({"What was trained": trained, "Is it better?": better, "What it cost": cost}, name="answers")


def _headline(found: RunNumbers) -> list[Tile]:
    tiles: list[Tile] = []
    probe = found.probes.get("probe", {})
    for name, words in (("linear", "linear probe"), ("knn", "nearest neighbors")):
        ours, other = (probe.get(which, {}).get(name) for which in (OURS, UNTRAINED))
        if ours:
            tiles.append(Tile(percent_of(ours), words, f"untrained: {percent_of(other)}" if other else ""))
    losses, held = found.curve("loss")[1], found.curve("eval_loss")[1]
    blind = "" if found.blind is None else f"a blind prediction: {found.blind:.3g}"
    if held:
        compared = blind or f"first evaluation: {held[0]:.3g}"
        tiles.append(Tile(f"{held[-1]:.3g}", "loss on held-out images", compared))
    elif losses:
        tiles.append(Tile(f"{losses[-1]:.3g}", "loss", blind or f"at the start: {losses[0]:.3g}"))
    if speed := found.speed:
        seen = found.recipe.steps * found.recipe.batch_size
        took = duration(found.seconds)
        tiles.append(Tile(f"{speed:,.0f}", "images per second", f"{seen:,} images in about {took}"))
    millions = sum(p.numel() for p in found.pretrainer.backbone.parameters()) / 1e6
    height, width = found.recipe.image_size
    tiles.append(Tile(f"{millions:.1f} M", "parameters", f"in the encoder, for {height}x{width} pixels"))
    return tiles


def _learning(found: RunNumbers) -> Section:
    charts: list[Html] = []
    loss, held = found.curve("loss"), found.curve("eval_loss")
    if loss[0] or held[0]:
        curves = [Curve("training images", *loss), Curve("held-out images", *held, dots=True)]
        if found.blind is not None:
            ends = [min([*loss[0], *held[0]]), max([*loss[0], *held[0]])]
            curves.append(Curve("blind prediction, which ignores the image", ends, [found.blind] * 2))
        charts.append(chart_over_steps(curves, "loss", "Loss by optimizer step"))
    online = {"linear probe": "linear_accuracy", "nearest neighbors": "knn_accuracy"}
    probes = {name: found.curve(column) for name, column in online.items()}
    shown = [Curve(name, x, [100 * y for y in ys], dots=True) for name, (x, ys) in probes.items() if x]
    if shown:
        charts.append(chart_over_steps(shown, "probes during the run, %", "Accuracy of probes by optimizer step"))
    before = "".join(
        f" Accuracy of {PROBE_NAMES[name]}: {100 * row['start']:.1f} % with the weights that it started from, "
        f"{100 * row['end']:.1f} % at the end."
        for name, row in probes_from_start(found.run.folder).items()
    )
    rank, variance = found.curve("feature_rank"), found.curve("feature_variance")
    if rank[0]:
        label = "directions in which features differ"
        charts.append(chart_over_steps([Curve("feature rank", *rank, dots=True)], label, "Rank of features by step"))
    if variance[0]:
        label = "share of features that differs between images"
        name = "feature variance"
        charts.append(chart_over_steps([Curve(name, *variance, dots=True)], label, "Variance of features by step"))
    unit = " The loss is in nats per code." if found.run.method.codes == "colors" else ""
    note = (
        f"Logged every {found.recipe.log_every} steps.{unit} A loss says how well the pretraining task is solved, "
        f"not how good the features are.{before}"
    )
    return Section("Learning curves", note if charts else "This run has no log.", [side_by_side(charts)])


def _cost(found: RunNumbers) -> Section:
    recipe, speed, seconds = found.recipe, found.speed, found.seconds
    seen = recipe.steps * recipe.batch_size
    values = {
        "optimizer steps": f"{recipe.steps:,}",
        "images per step": f"{recipe.batch_size:,}",
        "images seen": f"{seen:,}",
        "images per second": f"{speed:,.0f} (median)" if speed else "not logged",
        "time in training": f"about {duration(seconds)}" if seconds else "not logged",
        "devices": f"{recipe.devices * recipe.nodes} ({recipe.device})",
        "precision": recipe.precision,
    }
    steps, speeds = found.curve("images_per_second")
    charts = (
        [chart_over_steps([Curve("images per second", steps, speeds)], "images per second", "Throughput")]
        if steps
        else []
    )
    note = "Time is computed from the logged speed, without evaluations and start-up."
    return Section("What it cost", note, [side_by_side([definitions(values), *charts])])


def _again(found: RunNumbers) -> Section:
    run = shlex.quote(str(found.run.folder))
    lines = [pretrain_command(found.recipe)]
    lines += [probe["command"] for probe in found.probes.values() if probe.get("command")]
    lines += [f"patchcast report {run}"]
    note = (
        "The commands, with every option that is not the default. config.yaml in the run folder has the same options."
    )
    config = (found.run.folder / CONFIG).read_text()
    return Section("How to reproduce it", note, [commands(lines), folded("config.yaml", config)])


def pretrain_command(recipe: Recipe) -> str:
    """The command that reproduces a recipe, with every option that is not the default.

    >>> from pathlib import Path
    >>> print(pretrain_command(Recipe("mae", "test_vit", "my photos", Path("runs/a"), steps=5, flip=True)))
    patchcast pretrain --method mae --model test_vit --data 'my photos' --out runs/a --flip --steps 5
    """
    words = ["patchcast pretrain", *(shlex.join(typed) for _, typed in words_of(recipe))]
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)
