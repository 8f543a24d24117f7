"""The pictures drawn during a run, as one animation and as one strip from the first evaluation to the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from patchcast.drawing.sheets import GAP, label_width, with_labels
from patchcast.files import write_whole

MILLISECONDS, LAST = 400, 2500
"""How long a picture is shown, and the last one."""


def write_progress(folder: Path, rows: Sequence[str], changing: str) -> bool:
    """Write progress.gif and progress.png into a run's folder, from its images/step=N.png.

    The strip has the rows that are the same in all pictures once, and the row that changes for each of them.

    Args:
        rows: names of the rows of every picture.
        changing: the one whose changes are shown; those above it are shown once.
    Returns:
        False if there are fewer than two pictures, or they are not of one size.
    """
    files = sorted((folder / "images").glob("step=*.png"), key=lambda file: int(file.stem.partition("=")[2]))
    pictures = {f"step {file.stem.partition('=')[2]}": Image.open(file).convert("RGB") for file in files}
    if len(pictures) < 2 or len({picture.size for picture in pictures.values()}) > 1:
        return False
    first, *others = pictures.values()
    durations = [MILLISECONDS] * len(others) + [LAST]
    save = partial(first.save, save_all=True, append_images=others, duration=durations, loop=0)
    write_whole(folder / "progress.gif", save)
    height, left = (first.height + GAP) // len(rows), label_width(rows)

    def row(picture: Image.Image, name: str) -> Image.Image:
        top = rows.index(name) * height
        return picture.crop((left, top, picture.width, top + height - GAP))

    strip = {name: row(first, name) for name in rows[: rows.index(changing)]}
    strip |= {step: row(picture, changing) for step, picture in pictures.items()}
    whole = Image.new("RGB", (first.width - left, height * len(strip) - GAP), "white")
    for place, part in enumerate(strip.values()):
        whole.paste(part, (0, place * height))
    write_whole(folder / "progress.png", with_labels(whole, names=list(strip)).save)
    return True
