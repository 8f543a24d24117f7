"""The page that compares runs, fine-tuned models and tables of `patchcast compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchcast.report.charts import Curve, chart_over_steps
from patchcast.report.model_numbers import CLASSES_SHOWN, MAIN, ModelNumbers
from patchcast.report.page import Html, Section, commands, html_table, page, page_footer, side_by_side, subheading
from patchcast.report.run_numbers import RunNumbers
from patchcast.report.run_page import pretrain_command
from patchcast.report.shares import interval_of, percent_of
from patchcast.runs.network import OURS
from patchcast.training.progress import duration


def several_page(found: Sequence[RunNumbers], models: Sequence[ModelNumbers], tables: Sequence[Path]) -> str:
    """The HTML of the page.

    Args:
        tables: files that `patchcast compare` wrote.
    Raises:
        ValueError: if a file is no such table.
    """
    sections = [*map(_compared, tables), *_model_sections(models), *_run_sections(found)]
    parts = {"run": len(found), "fine-tuned model": len(models), "table": len(tables)}
    counted = [f"{count} {name}{'s' * (count > 1)}" for name, count in parts.items() if count]
    subtitle = "Pretrained without labels." if found and len(counted) == 1 else ""
    return page(" and ".join(counted), subtitle, [], sections, page_footer())


def _run_sections(found: Sequence[RunNumbers]) -> list[Section]:
    """What a page that compares runs says of them."""
    if not found:
        return []
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
                duration(seconds) if (seconds := one.seconds) else "–",
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
    note = "Losses can be compared within a method only. "
    note += f"Accuracies are on {data[0]}, with 95 % intervals over the test images." if len(data) == 1 else ""
    note += f"Accuracies are on different data: {'; '.join(data)}." if len(data) > 1 else ""
    sections = [Section("The runs", note, body)]
    for method in dict.fromkeys(one.recipe.method for one in found):
        curves = [
            Curve(one.run.folder.name, *one.curve("eval_loss"), dots=True)
            for one in found
            if one.recipe.method == method and one.curve("eval_loss")[0]
        ]
        if curves:
            chart = chart_over_steps(curves, "loss on held-out images", f"Loss of {method} by optimizer step")
            sections.append(Section(f"Loss of {method}", "", [side_by_side([chart])]))
    for column, name in (("linear_accuracy", "linear probe"), ("knn_accuracy", "nearest neighbors")):
        curves = [
            Curve(one.run.folder.name, x, [100 * y for y in ys], dots=True)
            for one in found
            for x, ys in [one.curve(column)]
            if x
        ]
        if curves:
            chart = chart_over_steps(curves, f"{name} during the run, %", f"Accuracy of the {name} by optimizer step")
            sections.append(Section(f"{name[0].upper()}{name[1:]} during the runs", "", [side_by_side([chart])]))
    how = [pretrain_command(one.recipe) for one in found]
    sections.append(Section("How to reproduce them", "With every option that is not the default.", [commands(how)]))
    return sections


def _model_sections(models: Sequence[ModelNumbers]) -> list[Section]:
    """What a page that compares fine-tuned models says of them."""
    if not models:
        return []
    header = ["model", "started from", "training images", "measure", "%", "test images", "processor time"]
    rows = [
        [
            one.folder.name,
            Path(one.start).name,
            f"{one.metrics['training_images']:,}",
            MAIN[one.measure],
            interval_of(one.metrics[one.measure]),
            f"{one.metrics['test_images']:,}",
            duration(one.metrics["processor_seconds"]),
        ]
        for one in models
    ]
    data = list(dict.fromkeys(one.metrics["data"] for one in models))
    note = "95 % intervals over the test images. "
    note += f"On {data[0]}." if len(data) == 1 else f"On different data: {'; '.join(data)}."
    sections = [Section("Fine-tuned models", note, [html_table(header, rows)])]
    by_class = [one.by_class for one in models]
    if len(models) > 1 and len({(one.measure, *values) for one, values in zip(models, by_class, strict=True)}) == 1:
        lines = [[name, *(f"{100 * values[name]:.1f}" for values in by_class)] for name in by_class[0]]
        table = html_table(["class", *(one.folder.name for one in models)], lines[:CLASSES_SHOWN])
        what = {"accuracy": "Recall", "mean_average_precision": "Average precision", "mean_iou": "IoU"}[
            models[0].measure
        ]
        sections.append(Section("Class by class", f"{what} in %.", [table]))
    return sections


def _compared(file: Path) -> Section:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(file).to_pylist()
        few = sorted({int(name[4:]) for name in rows[0] if name.startswith("few_") and name[4:].isdigit()})
        measures = {"linear, all": "linear", "kNN": "knn", "own classifier": "own_classifier"}
        measures |= {f"{count} a class": f"few_{count}" for count in few}
        measures = {name: column for name, column in measures.items() if any(row[column] is not None for row in rows)}
        lines = [[row["network"], *(_measured(row, column) for column in measures.values())] for row in rows]
        data, tested = rows[0]["data"], rows[0]["test_images"]
    except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as problem:
        raise ValueError(
            f"{file} holds no table of patchcast compare ({type(problem).__name__}: {problem})"
        ) from problem
    note = f"Accuracy in % with 95 % intervals over {tested:,} test images, on {data}. A linear classifier and nearest "
    note += "neighbors on frozen features; an own classifier is the one that the network was fine-tuned with."
    return Section(f"Compared: {file.stem}", note, [html_table(["network", *measures], lines)])


def _measured(row: Mapping[str, Any], column: str) -> str:
    value = {key: row[f"{column}{end}"] for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))}
    return "–" if value["value"] is None else interval_of(value)
