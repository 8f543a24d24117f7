"""`patchcast embed`: write features of images to parquet or safetensors; resumes after a stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.data import open_images
from patchcast.data.names import escape
from patchcast.extraction.extraction import Kind, depends_on, open_extraction
from patchcast.extraction.feature_files import WRITERS, finished_parts, write_part
from patchcast.files import write_whole
from patchcast.modes import evaluating
from patchcast.parts import IMAGES_PER_PART, claim_parts
from patchcast.ranges import AT_LEAST_1, check_ranges


def write_features(
    source: str,
    *,
    data: str,
    out: Path,
    kind: Kind,
    split: str,
    image_column: str | None,
    label_column: str | None,
    max_pixels: int | None,
    tile_size: int | None,
    max_tiles: int,
    batch_size: int,
    untrained: bool,
    readout: Readout = DEFAULT_READOUT,
) -> None:
    """Write the features of every image that can be read.

    Args:
        readout: how units become one feature if `kind` is "pooled"; see `Backbone.pool`.
    Raises:
        ValueError: for anything that the user can fix.
    """
    values = {"batch_size": batch_size, "max_tiles": max_tiles, "tile_size": tile_size}
    check_ranges(values, dict.fromkeys(values, AT_LEAST_1), prefix="--")
    if out.suffix not in WRITERS:
        raise ValueError(f"--out must end in {' or '.join(WRITERS)}; got {out}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out, or delete it to write it again")
    method, channels = open_extraction(source, tile_size, max_tiles, untrained, readout, kind)
    reading: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "max_pixels": max_pixels}
    images = open_images(data, split=split, channels=channels, **reading)
    method.backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    parts = out.with_name(out.name + ".parts")
    done = claim_parts(parts, out, depends_on(method, images, IMAGES_PER_PART, kind), ".safetensors", "features")
    console = Console()
    console.print(
        f"{len(images):,} images of {escape(data)}: {kind} features of {escape(source)}, {method.description}"
    )
    if done:
        console.print(f"Resuming after {done} parts of {IMAGES_PER_PART} images.")
    starts = range(done * IMAGES_PER_PART, len(images), IMAGES_PER_PART)
    with evaluating(method.backbone):
        for start in track(starts, description="embedding", console=console, disable=not console.is_terminal):
            write_part(parts, start, start + IMAGES_PER_PART, method, images, kind, batch_size)
    count = 0

    def write(unfinished: Path) -> None:
        nonlocal count
        count = WRITERS[out.suffix](finished_parts(parts), unfinished, kind)
        if not count:
            raise ValueError(f"none of the {len(images)} images of {data} can be read")

    write_whole(out, write)
    shutil.rmtree(parts)
    skipped = f"; {len(images) - count} could not be read" if count < len(images) else ""
    console.print(f"Wrote {escape(out)}: {count:,} rows{skipped}.")
