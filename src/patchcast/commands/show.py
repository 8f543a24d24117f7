"""`patchcast show`: draw what a run predicts for images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from patchcast.data.decode import UnreadableImageError, decode
from patchcast.data.names import printable
from patchcast.drawing.figures import draw_versions
from patchcast.drawing.versions import caption, versions
from patchcast.files import check_writable, write_figure
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.results import held_out_images
from patchcast.runs.run import Run, open_run


def show(run: Path, images: Sequence[Path] = (), *, count: int = 8, seed: int = 0, out: Path | None = None) -> Path:
    """Draw what a run predicts for image files, or for its held-out images; returns the path of the picture.

    Raises:
        ValueError: if there is no such run or image, or the method's targets are not pixels.
    """
    check_ranges({"count": count}, {"count": AT_LEAST_1}, prefix="--")
    opened = open_run(run)
    out = check_writable(out or run / "show.png")
    if not opened.pretrainer.target.is_drawn:
        raise ValueError(f"{opened.recipe.method} does not predict pixels, so nothing can be drawn; probe it instead")
    shown, phrase = chosen_images(opened, images, count=count)
    write_figure(prediction_figure(opened, shown, phrase, seed=seed), out)
    print(f"Wrote {printable(str(out))}.")
    return out


def chosen_images(run: Run, files: Sequence[Path], *, count: int) -> tuple[Tensor, str]:
    """Image files as the run's model sees them, or `count` of its held-out images; and a phrase that describes them."""
    if files:
        return torch.stack([run.evaluation(_read(file, run.recipe.channels)) for file in files]), "given images"
    return held_out_images(run, count)


def prediction_figure(run: Run, images: Tensor, phrase: str, *, seed: int = 0) -> Figure:
    """A figure of images, their visible parts and the predictions."""
    normalization = (run.recipe.mean, run.recipe.std)
    drawn = versions(run.pretrainer.cpu(), images, normalization, seed=seed)
    return draw_versions(drawn, caption=caption(run.pretrainer, phrase))


def _read(file: Path, channels: int) -> Tensor:
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name image files, or leave them out to show the run's own images")
    if not file.exists():
        raise ValueError(f"there is no file {file}")
    try:
        with file.open("rb") as opened:
            return decode(opened, channels)
    except (UnreadableImageError, OSError) as problem:
        raise ValueError(f"{file} cannot be read: {problem}") from problem
