"""`patchcast predict` with a segmenter: a mask and an overlay for every image, and a table of them."""

from __future__ import annotations

from rich.console import Console
from rich.progress import track

from patchcast import options
from patchcast.data.images import Unreadable
from patchcast.data.listed import open_listed
from patchcast.data.names import escape
from patchcast.segmentation.predicted_masks import TABLE_OF_MASKS, MaskRow, write_mask, write_table_of_masks
from patchcast.segmentation.segmenter_folder import open_segmenter


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
    rows, bad = list[MaskRow](), list[Unreadable]()
    for number, (images, place) in enumerate(
        track(work, description="predicting", console=console, disable=not console.is_terminal)
    ):
        written = write_mask(tuned, images, place, number, given.out, device)
        if isinstance(written, Unreadable):
            bad.append(written)
        else:
            rows.append(written)
    if not rows:
        raise ValueError(f"none of the {len(work):,} images can be read")
    write_table_of_masks(rows, tuned.names, given.out)
    console.print(
        f"Wrote {len(rows):,} masks and overlays to {escape(given.out)}, and {TABLE_OF_MASKS} with the share of each "
        "class."
    )
    for one in bad:
        console.print(f"  could not be read: {one.path}: {one.reason}", markup=False)
