"""`patchcast data check`: statistics of a source, and files that cannot be read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from patchcast.data.columns import Columns
from patchcast.data.duplicates import Shared, shared_by_split
from patchcast.data.names import escape
from patchcast.data.report_tables import channels_table, images_table, labels_table
from patchcast.data.source_report import check_splits
from patchcast.files import write_json
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, check_ranges

LISTED = 50
"""Maximum number of unreadable images that are listed in the terminal."""


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
    columns = Columns(reading.get("image_column"), reading.get("label_column"))
    found = check_splits(
        source,
        splits,
        columns=columns,
        max_pixels=reading.get("max_pixels"),
        limit=limit,
        workers=workers,
        progress=console.is_terminal,
    )
    opened, reports = [images for images, _ in found], [report for _, report in found]
    of = "" if limit is None else f", of which at most {limit:,} were read"
    count = sum(report.readable + len(report.unreadable) for report in reports)
    console.print(
        f"\n[bold]{escape(reports[0].name)}[/]: {count:,} images read of {escape(source)}{of}", soft_wrap=True
    )
    console.print(images_table(reports))
    console.print(channels_table(reports))
    if any(label >= 0 for report in reports for label in report.labels):
        console.print(labels_table(reports))
    else:
        reason = f": {opened[0].no_labels}" if opened[0].no_labels else ""
        console.print(f"  No labels{escape(reason)}.\n", soft_wrap=True)
    bad = [image for report in reports for image in report.unreadable]
    for image in bad[:LISTED]:
        console.print(f"  [red]unreadable[/] {escape(f'{image.path}: {image.reason}')}", soft_wrap=True)
    if len(bad) > LISTED:
        console.print(f"  ... and {len(bad) - LISTED:,} more" + ("" if out else "; --out FILE.json lists all"))
    shared = shared_by_split(opened)
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


def _plain(shared: dict[str, list[Shared]]) -> dict[str, list[dict[str, str]]]:
    return {split: [file._asdict() for file in files] for split, files in shared.items()}
