"""`patchcast predict` with a segmenter: a mask and an overlay for every image, and a table of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from patchcast import options
from patchcast.data.images import Unreadable
from patchcast.data.listed import open_listed
from patchcast.data.masks import read_mask
from patchcast.files import write_text, write_whole
from patchcast.segmentation.mask_pictures import mask_png, overlay
from patchcast.segmentation.segmenter_folder import open_segmenter

TABLE_OF_MASKS = "masks.csv"


def predict_masks(given: options.Predict, device: str) -> None:
    """Write masks as PNG, overlays as JPEG and the share of each class to a folder. Masks that are there are kept.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
    """
    if given.data is not None:
        raise ValueError(f"{given.model} is a segmenter; leave --data out")
    if given.out is None or given.out.suffix:
        raise ValueError(f"{given.model} is a segmenter: --out names a folder for its masks; got {given.out}")
    tuned = open_segmenter(given.model)
    tuned.model.to(device)
    given.out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    sources = open_listed(given.images, channels=tuned.channels, split=given.split)
    work = [(images, place) for images in sources for place in range(len(images))]
    rows: list[dict[str, str]] = []
    bad: list[Unreadable] = []
    for number, (images, place) in enumerate(
        track(work, description="predicting", console=console, disable=not console.is_terminal)
    ):
        path = images.store.path(int(images.positions[place]))
        file = given.out / f"{number:05d}-{Path(path).stem}.png"
        if not file.exists():
            example = images.attempt(place)
            if isinstance(example, Unreadable):
                bad.append(example)
                continue
            mask = tuned.probabilities(example.image, device).argmax(dim=0)
            picture = Image.fromarray(overlay(example.image, mask).permute(1, 2, 0).numpy())
            _write(file.with_suffix(".overlay.jpg"), _jpeg(picture))
            _write(file, mask_png(mask))  # last: a mask that is there has its overlay
        counts = np.bincount(read_mask(file).flatten().numpy(), minlength=len(tuned.names))
        shares = {name: f"{share:.4g}" for name, share in zip(tuned.names, counts / counts.sum(), strict=False)}
        rows.append({"path": path, "mask": file.name, **shares})
    if not rows:
        raise ValueError(f"none of the {len(work):,} images can be read")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["path", "mask", *tuned.names])
    writer.writeheader()
    writer.writerows(rows)
    write_text(given.out / TABLE_OF_MASKS, text.getvalue())
    console.print(
        f"Wrote {len(rows):,} masks and overlays to {given.out}, and {TABLE_OF_MASKS} with the share of each class."
    )
    for one in bad:
        console.print(f"  could not be read: {one.path}: {one.reason}", markup=False)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda unfinished: unfinished.write_bytes(content))
