"""`patchcast complete`: how a run would go on from the beginning of given images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from patchcast.commands.folder import open_run
from patchcast.commands.sample import picture_path
from patchcast.commands.show import chosen_images
from patchcast.drawings import GREY, save_drawing, save_grid
from patchcast.generation import complete, parts


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
    """Complete image files, or the first of the run's data, and write the results as PNG and as GIF.

    Each row of the PNG is an image: what is given of it, its completions, and the image itself in the palette's
    colours. The GIF has the completions alone.

    Raises:
        ValueError: if the run is of another method, an image cannot be read, or the options make no sense.
    """
    recipe, pretrainer = open_run(run)
    network, _ = parts(pretrainer)
    out = picture_path(out or run / "completions.png")
    tokenizer: Any = pretrainer.target.tokenizer
    grid = network.grid
    prefix = grid.units // 2 if prefix is None else prefix
    given = chosen_images(recipe, images, count=count)
    pretrainer.to("cuda" if torch.cuda.is_available() else "cpu")
    ids = complete(
        pretrainer,
        given,
        prefix,
        copies=copies,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=batch_size,
        progress=True,
    )
    pretrainer.cpu()
    whole = tokenizer.decode(tokenizer.encode(given), grid)
    is_given = (torch.arange(grid.units) < prefix).view(1, 1, *grid)
    shown = torch.where(is_given, whole, torch.full_like(whole, GREY))
    drawn = tokenizer.decode(ids.cpu().flatten(0, 1), grid).unflatten(0, (-1, copies))
    rows = torch.cat([shown[:, None], drawn, whole[:, None]], dim=1).flatten(0, 1)
    save_grid(rows, out, columns=copies + 2)
    save_drawing(ids.cpu().flatten(0, 1), tokenizer, grid, out.with_suffix(".gif"), given=prefix, columns=copies)
    print(f"Wrote {out} and {out.with_suffix('.gif')}.")
    return out
