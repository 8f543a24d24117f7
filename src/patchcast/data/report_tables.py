"""Reports of the splits of a source as tables: sizes, channels and labels."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from patchcast.data.names import escape
from patchcast.data.source_report import Report

LISTED_CLASSES = 40
"""Maximum number of classes with their own row; others are summarized."""


def images_table(reports: Sequence[Report]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("split")
    for name in ("readable", "unreadable", "smallest", "median", "largest"):
        table.add_column(name, justify="right")
    for report in reports:
        sizes = [f"{height} x {width}" for height, width in report.size_range]
        bad = f"{len(report.unreadable):,}"
        shown = f"[red]{bad}[/]" if report.unreadable else bad
        table.add_row(report.split, f"{report.readable:,}", shown, *sizes)
    table.caption = "Sizes are height x width, by area."
    table.caption_justify = "left"
    return table


def channels_table(reports: Sequence[Report]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("channel")
    for report in reports:
        table.add_column(f"{report.split} mean", justify="right")
        table.add_column("deviation", justify="right")
    for channel in range(len(reports[0].mean)):
        found = [f"{values[channel]:.4g}" for report in reports for values in (report.mean, report.std)]
        table.add_row(str(channel + 1), *found)
    table.caption = "Over all pixels, white being 1."
    table.caption_justify = "left"
    return table


def labels_table(reports: Sequence[Report]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("label")
    for report in reports:
        table.add_column(report.split, justify="right")
    found = sorted({label for report in reports for label in report.labels if label >= 0})
    if len(found) <= LISTED_CLASSES:
        names = reports[0].class_names
        for label in found:
            name = names[label] if names is not None and label < len(names) else str(label)
            table.add_row(escape(name), *(f"{report.labels.get(label, 0):,}" for report in reports))
    else:
        table.add_row("classes", *(str(sum(label >= 0 for label in report.labels)) for report in reports))
        for title, choose in (("fewest images", min), ("most images", max)):
            counts = [[n for label, n in report.labels.items() if label >= 0] for report in reports]
            table.add_row(title, *(f"{choose(each, default=0):,}" for each in counts))
    if any(-1 in report.labels for report in reports):
        table.add_row("[dim]none[/]", *(f"{report.labels.get(-1, 0):,}" for report in reports))
    return table
