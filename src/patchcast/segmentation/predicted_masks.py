"""Masks of images in a folder: PNG with the class of each pixel, overlays, and the share of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchcast.data import Images
from patchcast.data.images import Unreadable
from patchcast.data.masks import read_mask
from patchcast.files import write_text, write_whole
from patchcast.segmentation.mask_pictures import mask_png, overlay
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter

MaskRow = dict[str, str]
TABLE_OF_MASKS = "masks.csv"


def write_mask(
    tuned: FineTunedSegmenter, images: Images, place: int, number: int, out: Path, device: str
) -> MaskRow | Unreadable:
    """Write the mask and the overlay of one image, if they are not there already.

    Args:
        place: of the image among `images`.
        number: of the image among all; the files' names begin with it.
    Returns:
        a row of the table of masks, or why there is none.
    """
    path = images.store.path(int(images.positions[place]))
    file = out / f"{number:05d}-{Path(path).stem}.png"
    if not file.exists():
        example = images.attempt(place)
        if isinstance(example, Unreadable):
            return example
        mask = tuned.probabilities(example.image, device).argmax(dim=0)
        picture = Image.fromarray(overlay(example.image, mask).permute(1, 2, 0).numpy())
        _write(file.with_suffix(".overlay.jpg"), _jpeg(picture))
        _write(file, mask_png(mask))  # last: a mask that is there has its overlay
    counts = np.bincount(read_mask(file).flatten().numpy(), minlength=len(tuned.names))
    shares = {name: f"{share:.4g}" for name, share in zip(tuned.names, counts / counts.sum(), strict=False)}
    return {"path": path, "mask": file.name, **shares}


def write_table_of_masks(rows: Sequence[MaskRow], names: Sequence[str], out: Path) -> None:
    """The share of each class in every image, as a CSV file of the folder."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["path", "mask", *names])
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE_OF_MASKS, text.getvalue())


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda unfinished: unfinished.write_bytes(content))
