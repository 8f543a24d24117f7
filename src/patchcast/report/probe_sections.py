"""The sections of a run's page about probes: accuracy, few labels, every pixel, layer by layer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from patchcast.backbones.capabilities import READ_AS
from patchcast.report.charts import Curve, line_chart
from patchcast.report.page import Html, Section, commands, html_table, remark, side_by_side, subheading
from patchcast.report.pictures import embedded
from patchcast.report.run_numbers import NETWORK_ROWS, RunNumbers
from patchcast.report.shares import interval_of, percent_of
from patchcast.runs.network import OURS
from patchcast.runs.run import Run


def accuracy_sections(found: RunNumbers) -> list[Section]:
    """What probes have measured, or the command for it."""
    rows: list[list[str]] = []
    probe = found.probes.get("probe")
    if not found.probes:
        labels = "all labels" if found.demo else "labels"
        note = f"Not measured with {labels} yet. Run this command, and then write this page again:"
        typed = f"patchcast probe {shlex.quote(str(found.run.folder))}"
        return [Section("Probes", note, [commands([typed if _has_labels(found.run) else f"{typed} --data LABELED"])])]
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
            body.append(remark(difference_of(other, gained)))
    others = {"attentive": "Attentive probe", "finetune": "Fine-tuning, all weights"}
    for name, title in ((name, title) for name, title in others.items() if name in found.probes):
        one = found.probes[name]
        lines = [[NETWORK_ROWS.get(key, key), interval_of(row["accuracy"])] for key, row in _rows(one, "accuracy")]
        body += [subheading(title), html_table(["% right", "accuracy"], lines, strong=0)]
    if dense := found.probes.get("dense"):
        body += [subheading("Dense: the class of every pixel"), _dense_table(dense)]
        body.append(remark(f"On {dense['data']}."))
    source = next(iter(found.probes.values())).get("data", "")
    read = f" A network's feature is {READ_AS[probe.get('readout', 'mean')]}." if probe else ""
    note = (
        f"Accuracy in % on {source}; 95 % intervals over the test images in brackets, spread over draws after ±. "
        "Differences are between linear probes on all labels, on the same test images; they do not cover the seed."
        f"{read}"
    )
    return [Section("Probes", note, body)] if body else []


def _has_labels(run: Run) -> bool:
    """Whether the run's own data has labels; False if it is not there any more."""
    try:
        return run.source.has_labels
    except (ValueError, OSError):
        return False


def few_label_sections(found: RunNumbers) -> list[Section]:
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


def difference_of(other: str, gained: Mapping[str, Any]) -> str:
    """A difference on the same test images, in points.

    >>> difference_of("untrained", {"value": 0.031, "low": 0.01, "high": 0.05})
    'This run vs untrained: +3.1 points [+1.0, +5.0].'
    """
    value, low, high = (100 * gained[key] for key in ("value", "low", "high"))
    sure = "" if low > 0 or high < 0 else " (not significant)"
    return f"This run vs {other}: {value:+.1f} points [{low:+.1f}, {high:+.1f}]{sure}."


def layer_sections(found: RunNumbers) -> list[Section]:
    """Accuracy by layer, if it was measured."""
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
    note = f"Linear probe of the output of each layer, on {layers.get('data', '')}."
    return [Section("Where the features are", note, [side_by_side([chart])])]
