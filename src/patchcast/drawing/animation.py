"""The pictures drawn during a run as one animation, from the first evaluation to the last."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from patchcast.files import write_whole

MILLISECONDS, LAST = 400, 2500
"""How long a picture is shown, and the last one."""


def write_progress(folder: Path) -> Path | None:
    """Write progress.gif into a run's folder, from its images/step=N.png; None if there are fewer than two."""
    files = sorted((folder / "images").glob("step=*.png"), key=lambda file: int(file.stem.partition("=")[2]))
    pictures = [Image.open(file).convert("RGB") for file in files]
    if len(pictures) < 2 or len({picture.size for picture in pictures}) > 1:
        return None
    out = folder / "progress.gif"
    durations = [MILLISECONDS] * (len(pictures) - 1) + [LAST]
    first, *others = pictures
    write_whole(out, partial(first.save, save_all=True, append_images=others, duration=durations, loop=0))
    return out
