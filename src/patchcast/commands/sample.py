"""`patchcast sample`: images that a run draws from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from patchcast.drawing.generation import parts, sample
from patchcast.drawing.sheets import save_drawing, save_grid
from patchcast.pretrainer import Pretrainer
from patchcast.runs.run_folder import open_run


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
    """Draw images with a run's ImageGPT and write them as PNG, and how they came to be as GIF; returns the PNG's path.

    Raises:
        ValueError: if the run is of another method, or the options make no sense.
    """
    _, pretrainer = open_run(run)
    parts(pretrainer)
    out = picture_path(out or run / "samples.png")
    write_samples(
        pretrainer,
        out,
        count=count,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=batch_size,
        progress=True,
    )
    print(f"Wrote {out} and {out.with_suffix('.gif')}.")
    return out


def write_samples(
    pretrainer: Pretrainer,
    out: Path,
    *,
    count: int,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> None:
    """Draw images, and write them as PNG and as GIF."""
    pretrainer.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer: Any = pretrainer.target.tokenizer
    grid = parts(pretrainer)[0].grid
    ids = sample(
        pretrainer,
        count,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=batch_size,
        progress=progress,
    )
    save_grid(tokenizer.decode(ids, grid), out)
    save_drawing(ids, tokenizer, grid, out.with_suffix(".gif"))


def picture_path(out: Path) -> Path:
    """The path of a PNG beside which a GIF will lie.

    Raises:
        ValueError: if its name says something else.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out names a PNG, beside which a GIF will lie; got {out}")
    return out
