"""`patchcast report`: everything known about a run or a fine-tuned model in one HTML file, or several compared."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchcast.arguments import words_of
from patchcast.backbones import Backbone
from patchcast.backbones.capabilities import READ_AS
from patchcast.commands.report_models import (
    compared_sections,
    is_model,
    model_sections,
    read_model,
    write_model_page,
)
from patchcast.commands.report_parts import interval_of, page_footer, percent_of
from patchcast.data import denormalize
from patchcast.data.images import evenly_spaced
from patchcast.data.names import printable, visible
from patchcast.drawing.figures import Version
from patchcast.drawing.versions import BLIND_ROW, completed, completes_pixels, draws_codes, samples, versions
from patchcast.evaluation.maps import pca_maps
from patchcast.files import check_writable, read_json, write_text
from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.report import Curve, Html, Section, Tile, commands, definitions, html_table, line_chart, page, strips
from patchcast.report.page import folded, side_by_side, subheading
from patchcast.report.pictures import embedded, image_row
from patchcast.runs.network import OURS, UNTRAINED
from patchcast.runs.results import probes_from_start
from patchcast.runs.run import Run, open_run
from patchcast.runs.run_folder import CONFIG, METRICS, RESULTS
from patchcast.stages import stage
from patchcast.training.log import curve
from patchcast.training.probing import PROBE_NAMES
from patchcast.training.progress import duration
from patchcast.views import Attend

PICTURES, SAMPLES = 6, 24
COMPARED = ".parquet"
"""What `patchcast compare` writes."""
LINE = 110  # maximum number of letters of a command on one line
NETWORK_ROWS = {OURS: "this run"}
"""Other names for rows of a run's JSON files."""


@dataclass(frozen=True)
class RunNumbers:
    """A run and its results; empty if not measured.

    Attributes:
        probes: the contents of probe.json and similar files, by file name.
    """

    run: Run
    probes: Mapping[str, Any]

    @property
    def recipe(self) -> Resolved:
        return self.run.recipe

    @property
    def pretrainer(self) -> Pretrainer:
        return self.run.pretrainer

    @property
    def demo(self) -> dict[str, Any]:
        """What `patchcast demo` has measured; empty for other runs."""
        file = self.run.folder / "demo.json"
        return read_json(file) if file.exists() else {}

    @property
    def blind(self) -> float | None:
        """The loss of a prediction that ignores the image; None if it is not known."""
        file = self.run.folder / RESULTS
        return read_json(file).get("blind_loss") if file.exists() else None

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of metrics.csv; empty if there is none."""
        file = self.run.folder / METRICS
        return curve(file, column) if file.exists() else ([], [])


def report(runs: Sequence[Path], *, out: Path | None = None, data: str | None = None) -> Path:
    """Write a page about a run or a fine-tuned model, or one that compares several, and return its path.

    Args:
        runs: folders of runs and of `patchcast finetune`, and tables of `patchcast compare`.
        out: the file; None for report.html in the folder, or in the current one for several.
        data: images to show; None for the run's own.
    Raises:
        ValueError: if a folder holds no run, or one that has no weights yet, or a table is none of `compare`'s.
    """
    tables = [file for file in runs if file.suffix == COMPARED]
    models = [read_model(folder) for folder in runs if folder.suffix != COMPARED and is_model(folder)]
    found = [numbers_of(run) for run in runs if run.suffix != COMPARED and not is_model(run)]
    alone = [one.folder for one in models] + [one.run.folder for one in found]
    is_alone = len(runs) == 1 and bool(alone)
    out = check_writable(out or (alone[0] / "report.html" if is_alone else Path("report.html")))
    if data is not None and not (is_alone and found):
        raise ValueError("--data chooses the images on the page of one run; leave it out")
    with stage("Drawing the page"):
        if is_alone:
            text = write_page(found[0], data or found[0].recipe.data) if found else write_model_page(models[0])
        else:
            sections = [*compared_sections(tables), *model_sections(models), *(_run_sections(found) if found else [])]
            parts = {"run": len(found), "fine-tuned model": len(models), "table": len(tables)}
            counted = [f"{count} {name}{'s' * (count > 1)}" for name, count in parts.items() if count]
            subtitle = "Pretrained without labels." if found and len(counted) == 1 else ""
            text = page(" and ".join(counted), subtitle, [], sections, page_footer())
    write_text(out, visible(text, besides="\n\t"))  # names of data and files stand in it
    print(f"Wrote {printable(str(out))}.")
    return out


def numbers_of(folder: Path) -> RunNumbers:
    """A run, opened, with everything that was measured of it."""
    files = {name: folder / f"{name}.json" for name in ("probe", "layers", "attentive", "finetune", "dense")}
    probes = {name: read_json(file) for name, file in files.items() if file.exists()}
    return RunNumbers(open_run(folder), probes)


def write_page(found: RunNumbers, data: str) -> str:
    """The HTML of the page."""
    sections = [
        _learning(found),
        *_few_labels(found),
        *_accuracy(found),
        *_layers(found),
        *_pictures(found, data),
        _cost(found),
        _again(found),
    ]
    recipe = found.recipe
    subtitle = (
        f"{recipe.steps:,} steps of {recipe.batch_size} images of {recipe.data}, without labels. "
        f"Folder: {found.run.folder}"
    )
    footer = page_footer()
    title = f"{recipe.method} on {recipe.model}"
    return page(title, subtitle, _headline(found), sections, footer, answers=_answers(found))


def _run_sections(found: Sequence[RunNumbers]) -> list[Section]:
    """What a page that compares runs says of them."""
    header = ["run", "method", "model", "images seen", "held-out loss", "linear, %", "kNN, %", "time"]
    rows = []
    for one in found:
        recipe, probe = one.recipe, one.probes.get("probe", {}).get(OURS, {})
        held = one.curve("eval_loss")[1]
        rows.append(
            [
                one.run.folder.name,
                recipe.method,
                recipe.model,
                f"{recipe.steps * recipe.batch_size:,}",
                f"{held[-1]:.3g}" if held else "–",
                interval_of(probe["linear"]) if probe else "–",
                percent_of(probe.get("knn"), ""),
                duration(seconds) if (seconds := _seconds(one)) else "–",
            ]
        )
    unmeasured = [one for one in found if "probe" not in one.probes]
    body: list[Html] = [html_table(header, rows)]
    if unmeasured:
        body.append(subheading("Not measured with labels yet"))
        body.append(
            commands([f"patchcast probe {shlex.quote(str(one.run.folder))} --data LABELED" for one in unmeasured])
        )
    data = sorted({one.probes["probe"]["data"] for one in found if "probe" in one.probes})
    alt = "Losses can be compared within a method only. "
    alt += f"Accuracies are on {data[0]}, with 95 % intervals over the test images." if len(data) == 1 else ""
    alt += f"Accuracies are on different data: {'; '.join(data)}." if len(data) > 1 else ""
    sections = [Section("The runs", alt, body)]
    for method in dict.fromkeys(one.recipe.method for one in found):
        curves = [
            Curve(one.run.folder.name, *one.curve("eval_loss"), dots=True)
            for one in found
            if one.recipe.method == method and one.curve("eval_loss")[0]
        ]
        if curves:
            chart = _over_steps(curves, "loss on held-out images", f"Loss of {method} by optimizer step")
            sections.append(Section(f"Loss of {method}", "", [side_by_side([chart])]))
    for column, name in (("linear_accuracy", "linear probe"), ("knn_accuracy", "nearest neighbors")):
        curves = [
            Curve(one.run.folder.name, x, [100 * y for y in ys], dots=True)
            for one in found
            for x, ys in [one.curve(column)]
            if x
        ]
        if curves:
            chart = _over_steps(curves, f"{name} during the run, %", f"Accuracy of the {name} by optimizer step")
            sections.append(Section(f"{name[0].upper()}{name[1:]} during the runs", "", [side_by_side([chart])]))
    how = [pretrain_command(one.recipe) for one in found]
    sections.append(Section("How to reproduce them", "With every option that is not the default.", [commands(how)]))
    return sections


def _answers(found: RunNumbers) -> Html:
    """What was trained, whether it is better than what costs nothing, and what it cost."""
    recipe, speed, probe = found.recipe, _speed(found), found.probes.get("probe", {})
    start = f", from the weights {recipe.start_words}" if recipe.start_words else ""
    trained = (
        f"{recipe.model} with {recipe.method} on {recipe.data}, without labels{start}: "
        f"{recipe.steps * recipe.batch_size:,} images seen in {recipe.steps:,} steps."
    )
    gained = probe.get("differences", {})
    if not gained:
        better = found.demo.get("summary") or "Not known yet: only labels can tell. The command is below, under Probes."
    else:
        named = {name: _gained(name, points).partition(": ")[2].rstrip(".") for name, points in gained.items()}
        ahead = [f"{name} ({named[name]})" for name in gained if gained[name]["low"] > 0]
        rest = [f"{name} ({named[name]})" for name in gained if gained[name]["low"] <= 0]
        better = f"{'Better than ' + ', '.join(ahead) if ahead else 'Better than nothing that it was compared with'}."
        better += f" Not better than {', '.join(rest)}." if rest else ""
        better += f" Linear classifier on {probe.get('data', '')}."
    cost = f"About {duration(_seconds(found))} of training, at {speed:,.0f} images a second" if speed else "Not logged"
    devices = recipe.devices * recipe.nodes
    cost += f"{f', on {devices} devices' if devices > 1 else ''}, in {recipe.precision}."
    return definitions({"What was trained": trained, "Is it better?": better, "What it cost": cost}, name="answers")


# ---- numbers --------------------------------------------------------------------------------------------------------


def _headline(found: RunNumbers) -> list[Tile]:
    tiles: list[Tile] = []
    probe = found.probes.get("probe", {})
    for name, alt in (("linear", "linear probe"), ("knn", "nearest neighbors")):
        ours, other = (probe.get(which, {}).get(name) for which in (OURS, UNTRAINED))
        if ours:
            tiles.append(Tile(percent_of(ours), alt, f"untrained: {percent_of(other)}" if other else ""))
    losses, held = found.curve("loss")[1], found.curve("eval_loss")[1]
    blind = "" if found.blind is None else f"a blind prediction: {found.blind:.3g}"
    if held:
        compared = blind or f"first evaluation: {held[0]:.3g}"
        tiles.append(Tile(f"{held[-1]:.3g}", "loss on held-out images", compared))
    elif losses:
        tiles.append(Tile(f"{losses[-1]:.3g}", "loss", blind or f"at the start: {losses[0]:.3g}"))
    if speed := _speed(found):
        seen = found.recipe.steps * found.recipe.batch_size
        took = duration(_seconds(found))
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
        charts.append(_over_steps(curves, "loss", "Loss by optimizer step"))
    online = {"linear probe": "linear_accuracy", "nearest neighbors": "knn_accuracy"}
    probes = {name: found.curve(column) for name, column in online.items()}
    shown = [Curve(name, x, [100 * y for y in ys], dots=True) for name, (x, ys) in probes.items() if x]
    if shown:
        charts.append(_over_steps(shown, "probes during the run, %", "Accuracy of probes by optimizer step"))
    before = "".join(
        f" Accuracy of {PROBE_NAMES[name]}: {100 * row['start']:.1f} % with the weights that it started from, "
        f"{100 * row['end']:.1f} % at the end."
        for name, row in probes_from_start(found.run.folder).items()
    )
    rank, variance = found.curve("feature_rank"), found.curve("feature_variance")
    if rank[0]:
        label = "directions in which features differ"
        charts.append(_over_steps([Curve("feature rank", *rank, dots=True)], label, "Rank of features by step"))
    if variance[0]:
        label = "share of features that differs between images"
        name = "feature variance"
        charts.append(_over_steps([Curve(name, *variance, dots=True)], label, "Variance of features by step"))
    unit = " The loss is in nats per code." if found.run.method.codes == "colors" else ""
    alt = (
        f"Logged every {found.recipe.log_every} steps.{unit} A loss says how well the pretraining task is solved, "
        f"not how good the features are.{before}"
    )
    return Section("Learning curves", alt if charts else "This run has no log.", [side_by_side(charts)])


def _over_steps(curves: Sequence[Curve], label: str, alt: str) -> Html:
    return line_chart(curves, x_label="optimizer step", y_label=label, alt=alt)


def _accuracy(found: RunNumbers) -> list[Section]:
    rows: list[list[str]] = []
    probe = found.probes.get("probe")
    if not found.probes:
        labels = "all labels" if found.demo else "labels"
        alt = f"Not measured with {labels} yet. Run this command, and then write this page again:"
        typed = f"patchcast probe {shlex.quote(str(found.run.folder))}"
        return [Section("Probes", alt, [commands([typed if _has_labels(found.run) else f"{typed} --data LABELED"])])]
    body: list[Html] = []
    if probe:
        counts = [row["per_class"] for row in probe.get(OURS, {}).get("few_labels", [])]
        header = ["% right", *(f"{count} a class" for count in counts), "linear, all", "kNN", "RankMe"]
        for name, one in _rows(probe, "linear"):
            few = [f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" for row in one["few_labels"]]
            rank = f"{one['rankme']:.1f}" if one.get("rankme") else "–"
            rows.append(
                [NETWORK_ROWS.get(name, name), *few, interval_of(one["linear"]), percent_of(one.get("knn"), ""), rank]
            )
        body.append(html_table(header, rows, strong=0))
        for other, gained in probe.get("differences", {}).items():
            body.append(Html(f'<p class="alt">{escape(_gained(other, gained))}</p>'))
    others = {"attentive": "Attentive probe", "finetune": "Fine-tuning, all weights"}
    for name, title in ((name, title) for name, title in others.items() if name in found.probes):
        one = found.probes[name]
        lines = [[NETWORK_ROWS.get(key, key), interval_of(row["accuracy"])] for key, row in _rows(one, "accuracy")]
        body += [subheading(title), html_table(["% right", "accuracy"], lines, strong=0)]
    if dense := found.probes.get("dense"):
        body += [subheading("Dense: the class of every pixel"), _dense_table(dense)]
        body.append(Html(f'<p class="alt">On {escape(dense["data"])}.</p>'))
    source = next(iter(found.probes.values())).get("data", "")
    read = f" A network's feature is {READ_AS[probe.get('readout', 'mean')]}." if probe else ""
    alt = (
        f"Accuracy in % on {source}; 95 % intervals over the test images in brackets, spread over draws after ±. "
        "Differences are between linear probes on all labels, on the same test images; they do not cover the seed."
        f"{read}"
    )
    return [Section("Probes", alt, body)] if body else []


def _has_labels(run: Run) -> bool:
    """Whether the run's own data has labels; False if it is not there any more."""
    try:
        return run.source.has_labels
    except (ValueError, OSError):
        return False


def _few_labels(found: RunNumbers) -> list[Section]:
    """What the demo has measured: few labels, and nearest neighbors as a picture."""
    rows = found.demo.get("few_labels")
    if not rows:
        return []
    counts = [str(row["per_class"]) for row in next(iter(rows.values()))]
    lines = [
        [NETWORK_ROWS.get(name, name), *(f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" for row in row_of)]
        for name, row_of in rows.items()
    ]
    body = [html_table(["% right, labels per class", *counts], lines, strong=0)]
    picture = found.run.folder / "neighbors.png"
    if picture.exists():
        body += [subheading("Nearest neighbors before and after"), embedded(picture, "nearest neighbors")]
    return [Section("Few labels", "Mean and spread over draws of the labeled images.", body)]


def _dense_table(dense: Mapping[str, Any]) -> Html:
    header = ["% by unit", "linear: mean IoU", "pixels right", "kNN: mean IoU", "pixels right"]
    measures = [(how, what) for how in ("linear", "knn") for what in ("mean_iou", "pixel_accuracy")]
    rows = [
        [NETWORK_ROWS.get(name, name), *(interval_of(row[how][what]) for how, what in measures)]
        for name, row in _rows(dense, "linear")
    ]
    return html_table(header, rows, strong=0)


def _rows(probe: Mapping[str, Any], measure: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a JSON file that have this measure."""
    return [(name, row) for name, row in probe.items() if isinstance(row, dict) and measure in row]


def _gained(other: str, gained: Mapping[str, Any]) -> str:
    value, low, high = (100 * gained[key] for key in ("value", "low", "high"))
    sure = "" if low > 0 or high < 0 else " (not significant)"
    return f"This run vs {other}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]{sure}."


def _layers(found: RunNumbers) -> list[Section]:
    layers = found.probes.get("layers")
    if not layers:
        return []
    curves = []
    for name, accuracy in ((name, accuracy) for name, accuracy in layers.items() if isinstance(accuracy, dict)):
        numbers, accuracies = map(int, accuracy), accuracy.values()
        curves.append(
            Curve(NETWORK_ROWS.get(name, name), list(numbers), [100 * accuracy for accuracy in accuracies], dots=True)
        )
    chart = line_chart(curves, x_label="layer", y_label="linear probe, %", alt="Accuracy by layer")
    alt = f"Linear probe of the output of each layer, on {layers.get('data', '')}."
    return [Section("Where the features are", alt, [side_by_side([chart])])]


def _cost(found: RunNumbers) -> Section:
    recipe, speed, seconds = found.recipe, _speed(found), _seconds(found)
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
        [_over_steps([Curve("images per second", steps, speeds)], "images per second", "Throughput")] if steps else []
    )
    alt = "Time is computed from the logged speed, without evaluations and start-up."
    return Section("What it cost", alt, [side_by_side([definitions(values), *charts])])


def _again(found: RunNumbers) -> Section:
    run = shlex.quote(str(found.run.folder))
    lines = [pretrain_command(found.recipe)]
    lines += [probe["command"] for probe in found.probes.values() if probe.get("command")]
    lines += [f"patchcast report {run}"]
    alt = "The commands, with every option that is not the default. config.yaml in the run folder has the same options."
    config = (found.run.folder / CONFIG).read_text()
    return Section("How to reproduce it", alt, [commands(lines), folded("config.yaml", config)])


def pretrain_command(recipe: Recipe) -> str:
    """The command that reproduces a recipe, with every option that is not the default.

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


def _speed(found: RunNumbers) -> float | None:
    speeds = found.curve("images_per_second")[1]
    return statistics.median(speeds) if speeds else None


def _seconds(found: RunNumbers) -> float:
    """Training time from the logged speed."""
    steps, speeds = found.curve("images_per_second")
    before = [-1, *steps][: len(steps)]
    covered = sum((step - last) / speed for step, last, speed in zip(steps, before, speeds, strict=True) if speed > 0)
    return float(covered * found.recipe.batch_size)


# ---- pictures -------------------------------------------------------------------------------------------------------


def _pictures(found: RunNumbers, data: str) -> list[Section]:
    """Sections with predictions, drawings and feature maps; a sentence instead if the images cannot be read."""
    drawn = _samples(found.pretrainer) if draws_codes(found.pretrainer) else []
    try:
        part = found.run.shown(data)
        places = evenly_spaced(len(part.images), PICTURES)
        images = torch.stack([found.run.evaluation(part.images[place].image) for place in places])
    except (ValueError, OSError) as problem:
        return [*drawn, Section("What it predicts", f"The images cannot be shown: {problem}", [])]
    is_held_out = found.recipe.reads(data) and found.run.source.held_out is not None
    phrase = f"Not trained on: {part.phrase}" if is_held_out else part.phrase
    return [*_predictions(found, images, phrase), *drawn, *_maps(found, images)]


def _predictions(found: RunNumbers, images: Tensor, phrase: str) -> list[Section]:
    pretrainer, target = found.pretrainer, found.pretrainer.target
    if not target.is_drawn:
        return []
    normalization = (found.recipe.mean, found.recipe.std)
    body = [strips(versions(pretrainer, images, normalization))]
    which = f"{phrase[0].upper()}{phrase[1:]}"
    if draws_codes(pretrainer):
        alt = f"{which}. The upper half is given; the lower half was drawn twice, in the colors of the palette."
        return [Section("Completions", alt, body)]
    note = f" {target.from_image[0].upper()}{target.from_image[1:]}; {BLIND_ROW}." if target.from_image else ""
    alt = f"{which}: what was seen of each, and what was predicted in place of the rest.{note}"
    if isinstance(pretrainer.view, Attend):
        alt = f"{which}: their given units, and every other unit as predicted from all units before it.{note}"
    if completes_pixels(pretrainer):
        body += [subheading("Completed from the first half"), strips(completed(pretrainer, images, normalization))]
    return [Section("What it predicts", alt, body)]


def _samples(pretrainer: Pretrainer) -> list[Section]:
    alt = f"The first {SAMPLES} new images that it draws, without selection."
    return [Section("What it draws", alt, [image_row(list(samples(pretrainer, SAMPLES)), "sample")])]


def _maps(found: RunNumbers, images: Tensor) -> list[Section]:
    shown = denormalize(images, found.recipe.mean, found.recipe.std)
    try:
        maps = {
            "image": Version(shown),
            "this run": Version(_map(found.pretrainer.backbone, images)),
            "untrained": Version(_map(found.run.untrained().backbone, images)),
        }
    except ValueError:
        return []  # too few units or channels for three components
    alt = (
        "The first three principal components of the features of all units shown, as red, green and blue: units of one "
        "color have similar features. The colors themselves mean nothing."
    )
    return [Section("Feature maps", alt, [strips(maps)])]


def _map(backbone: Backbone, images: Tensor) -> Tensor:
    with evaluating(backbone):
        units = backbone.units(images)
    return pca_maps(units.clone(), backbone.grid(images))
