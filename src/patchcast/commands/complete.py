"""`patchcast complete`: images completed from their first pixels or patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchcast.commands.sample import picture_path
from patchcast.commands.show import chosen_images
from patchcast.data.names import printable
from patchcast.drawing.figures import draw_versions
from patchcast.drawing.generation import parts
from patchcast.drawing.samples import DrawOptions, write_completions
from patchcast.drawing.versions import completed
from patchcast.files import write_figure
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, check_ranges
from patchcast.runs.run import open_run
from patchcast.views import Attend


def draw_completions(
    run: Path,
    images: Sequence[Path],
    *,
    count: int,
    prefix: int | None,
    copies: int,
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    batch_size: int,
    out: Path | None,
) -> Path:
    """Complete image files or a run's held-out images as PNG, and for an ImageGPT as GIF; returns the PNG's path.

    Raises:
        ValueError: if the run has another method, an image cannot be read, or an option is out of range.
    """
    values = {"count": count, "copies": copies, "batch_size": batch_size, "prefix": prefix}
    ranges = {**dict.fromkeys(("count", "copies", "batch_size"), AT_LEAST_1), "prefix": NOT_NEGATIVE}
    check_ranges(values, ranges, prefix="--")
    out = picture_path(out or run / "completions.png")
    opened = open_run(run)
    pretrainer, recipe = opened.pretrainer, opened.recipe
    if isinstance(pretrainer.view, Attend):
        if temperature != 1.0 or top_k is not None or top_p is not None:
            raise ValueError(
                f"{recipe.method} predicts the mean of what could follow and does not sample: it takes no temperature, "
                "top_k or top_p"
            )
        given, phrase = chosen_images(opened, images, count=count)
        drawn = completed(pretrainer, given, (recipe.mean, recipe.std), prefix=prefix, seed=seed)
        write_figure(draw_versions(drawn, caption=phrase), out)
        print(f"Wrote {printable(str(out))}.")
        return out
    parts(pretrainer)  # an error for other methods
    given, _ = chosen_images(opened, images, count=count)
    draws = DrawOptions(seed, temperature, top_k, top_p, batch_size, progress=True)
    write_completions(pretrainer, given, out, prefix=prefix, copies=copies, draws=draws)
    print(f"Wrote {printable(str(out))} and {printable(str(out.with_suffix('.gif')))}.")
    return out
