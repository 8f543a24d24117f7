"""`patchcast data check`: statistics of a source, and files that cannot be read."""

from __future__ import annotations

import os
import shlex
import warnings
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast.data import Images, Report
from patchcast.data import check as check_images
from patchcast.data.columns import Columns
from patchcast.data.duplicates import Shared, shared_files
from patchcast.data.images import find_splits, open_split
from patchcast.data.names import escape
from patchcast.files import write_json
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, check_ranges

LISTED = 50
"""Maximum number of unreadable images that are listed in the terminal."""
LISTED_CLASSES = 40
"""Maximum number of classes with their own row; others are summarized."""
FEW_IMAGES = 2000
"""Number of images below which one process is as fast as several, which have to start first."""


def check_source(
    source: str, *, splits: list[str] | None = None, limit: int | None = None, workers: int | None = None,
    out: Path | None = None, **reading: Any,
) -> bool:  # fmt: skip
    """Read a source and print statistics; True if all of it can be read.

    Args:
        source: as `patchcast.data.open_images` takes it.
        splits: splits to read; None for all.
        limit: maximum number of images per split, evenly spaced.
        workers: processes that decode; None for one per core if there are many images.
        out: a JSON file for the results.
        reading: `image_column`, `label_column` and `max_pixels` of `open_images`.
    Raises:
        ValueError: if there is no such source or split, or nothing in it can be read.
    """
    ranges = {"limit": AT_LEAST_1, "workers": NOT_NEGATIVE}
    check_ranges({"limit": limit, "workers": workers}, ranges, prefix="--")
    console = Console(highlight=False)
    reports, opened = [], []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped ")  # they are listed below
        listed = find_splits(source, Columns(reading.get("image_column"), reading.get("label_column")))
        most = reading.get("max_pixels")
        first = open_split(listed, source, split=splits[0] if splits else "train", max_pixels=most)
        for split in splits or first.splits:
            is_first = split == first.split
            images = (
                first if is_first else open_split(listed, source, split=split, channels=first.channels, max_pixels=most)
            )
            opened.append(images)
            few = min(len(images.store), limit or len(images.store)) <= FEW_IMAGES
            processes = workers if workers is not None else 0 if few else os.cpu_count() or 0
            reports.append(check_images(images, limit=limit, workers=processes, progress=console.is_terminal))
    of = "" if limit is None else f", of which at most {limit:,} were read"
    count = sum(report.readable + len(report.unreadable) for report in reports)
    console.print(f"\n[bold]{escape(first.name)}[/]: {count:,} images read of {escape(source)}{of}", soft_wrap=True)
    console.print(_images_table(reports))
    console.print(_channels_table(reports))
    if any(label >= 0 for report in reports for label in report.labels):
        console.print(_labels_table(reports))
    else:
        reason = f": {opened[0].no_labels}" if opened[0].no_labels else ""
        console.print(f"  No labels{escape(reason)}.\n", soft_wrap=True)
    bad = [image for report in reports for image in report.unreadable]
    for image in bad[:LISTED]:
        console.print(f"  [red]unreadable[/] {escape(f'{image.path}: {image.reason}')}", soft_wrap=True)
    if len(bad) > LISTED:
        console.print(f"  ... and {len(bad) - LISTED:,} more" + ("" if out else "; --out FILE.json lists all"))
    shared = {later.split: _shared(later, opened[:place]) for place, later in enumerate(opened)}
    for split, by_other in shared.items():
        for other, files in by_other.items():
            example = f"{files[0].path} is {files[0].other}"
            console.print(
                f"  [red]in two splits[/] {len(files):,} images of {escape(split)} are in {escape(other)} too, byte "
                f"for byte: {escape(example)}",
                soft_wrap=True,
            )
    if out is not None:
        lines = [{**report.to_dict(), "shared": _plain(shared[report.split])} for report in reports]
        write_json(out, lines)
        console.print(f"  Wrote {escape(str(out))}.", soft_wrap=True)
    console.print("All can be read." if not bad else f"{len(bad):,} cannot be read; training skips them.")
    if not bad:
        console.print(
            "Next: [bold]patchcast pretrain --method auto --model vit_tiny_patch16_224 --data "
            f"{escape(shlex.quote(source))} --out runs/first[/]",
            soft_wrap=True,
        )
    return not bad


def _shared(images: Images, earlier: list[Images]) -> dict[str, list[Shared]]:
    """Image files that are in an earlier split too, by the name of that split."""
    found = {other.split: shared_files(images, other) for other in earlier}
    return {split: files for split, files in found.items() if files}


def _plain(shared: dict[str, list[Shared]]) -> dict[str, list[dict[str, str]]]:
    return {split: [file._asdict() for file in files] for split, files in shared.items()}


def _images_table(reports: list[Report]) -> Table:
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


def _channels_table(reports: list[Report]) -> Table:
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


def _labels_table(reports: list[Report]) -> Table:
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
