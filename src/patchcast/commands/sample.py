"""`patchcast sample`: draw new images."""

from __future__ import annotations

from pathlib import Path

from patchcast.data.names import printable
from patchcast.drawing.generation import parts
from patchcast.drawing.samples import DrawOptions, write_samples
from patchcast.files import check_writable
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.run import open_run


def draw_samples(
    run: Path,
    *,
    count: int,
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    batch_size: int,
    out: Path | None,
) -> Path:
    """Draw images with a run's ImageGPT and write them as PNG, and how they are drawn as GIF; returns the PNG's path.

    Raises:
        ValueError: if the run has another method, or an option is out of range.
    """
    ranges = {"count": AT_LEAST_1, "batch_size": AT_LEAST_1}
    check_ranges({"count": count, "batch_size": batch_size}, ranges, prefix="--")
    out = picture_path(out or run / "samples.png")
    pretrainer = open_run(run).pretrainer
    parts(pretrainer)  # an error for other methods
    draws = DrawOptions(seed, temperature, top_k, top_p, batch_size, progress=True)
    write_samples(pretrainer, out, count=count, draws=draws)
    print(f"Wrote {printable(str(out))} and {printable(str(out.with_suffix('.gif')))}.")
    return out


def picture_path(out: Path) -> Path:
    """Check the path of a PNG; a GIF is written next to it.

    Raises:
        ValueError: if it has another suffix.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out names a PNG, next to which a GIF is written; got {out}")
    return check_writable(out)
