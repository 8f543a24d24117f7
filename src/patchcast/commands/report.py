"""`patchcast report`: everything known about a run or a fine-tuned model in one HTML file, or several compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchcast.data.names import printable, visible
from patchcast.files import check_writable, write_text
from patchcast.report.model_numbers import is_model, read_model
from patchcast.report.model_page import model_page
from patchcast.report.run_numbers import numbers_of
from patchcast.report.run_page import run_page
from patchcast.report.several_page import several_page
from patchcast.stages import stage

COMPARED = ".parquet"
"""What `patchcast compare` writes."""


def report(runs: Sequence[Path], *, out: Path | None = None, data: str | None = None) -> Path:
    """Write a page about a run or a fine-tuned model, or one that compares several, and return its path.

    Args:
        runs: folders of runs and of `patchcast finetune`, and tables of `patchcast compare`.
        out: the file; None for report.html in the folder, or in the current one for several.
        data: images to show; None for the run's own.
    Raises:
        ValueError: if a folder holds no run, or one that has no weights yet, or a table is none of `compare`'s.
    """
    tables = [file for file in runs if file.suffix == COMPARED]
    models = [read_model(folder) for folder in runs if folder.suffix != COMPARED and is_model(folder)]
    found = [numbers_of(run) for run in runs if run.suffix != COMPARED and not is_model(run)]
    alone = [one.folder for one in models] + [one.run.folder for one in found]
    is_alone = len(runs) == 1 and bool(alone)
    out = check_writable(out or (alone[0] / "report.html" if is_alone else Path("report.html")))
    if data is not None and not (is_alone and found):
        raise ValueError("--data chooses the images on the page of one run; leave it out")
    with stage("Drawing the page"):
        if is_alone:
            text = run_page(found[0], data or found[0].recipe.data) if found else model_page(models[0])
        else:
            text = several_page(found, models, tables)
    write_text(out, visible(text, besides="\n\t"))  # names of data and files stand in it
    print(f"Wrote {printable(str(out))}.")
    return out
