"""Write images that an ImageGPT draws: a PNG of the images, and a GIF that shows them drawn code by code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchcast.drawing.generation import complete, parts, sample
from patchcast.drawing.sheets import GRAY, save_drawing, save_grid
from patchcast.pretrainer import Pretrainer


@dataclass(frozen=True)
class DrawOptions:
    """How codes are drawn; see `patchcast.drawing.generation.sample`."""

    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int = 64
    progress: bool = False

    def arguments(self) -> dict[str, Any]:
        """Arguments for `sample` and `complete`."""
        values = dict(vars(self))
        return {"generator": torch.Generator().manual_seed(values.pop("seed")), **values}


def write_samples(pretrainer: Pretrainer, out: Path, *, count: int, draws: DrawOptions) -> None:
    """Draw images and write a PNG and a GIF."""
    pretrainer.to(_device())
    tokenizer: Any = pretrainer.target.tokenizer
    grid = parts(pretrainer)[0].grid
    ids = sample(pretrainer, count, **draws.arguments()).cpu()
    pretrainer.cpu()
    save_grid(tokenizer.decode(ids, grid), out)
    save_drawing(ids, tokenizer, grid, out.with_suffix(".gif"))


def write_completions(
    pretrainer: Pretrainer,
    images: Float[Tensor, "B C H W"],
    out: Path,
    *,
    prefix: int | None,
    copies: int,
    draws: DrawOptions,
) -> None:
    """Complete images and write a PNG and a GIF.

    A row of the PNG shows an image: its first codes, its completions, and the image in the palette's colors. The GIF
    shows the completions only.

    Args:
        prefix: number of given codes; None for half of them.
    """
    tokenizer: Any = pretrainer.target.tokenizer
    grid = parts(pretrainer)[0].grid
    prefix = grid.units // 2 if prefix is None else prefix
    pretrainer.to(_device())
    ids = complete(pretrainer, images, prefix, copies=copies, **draws.arguments()).cpu()
    pretrainer.cpu()
    whole = tokenizer.decode(tokenizer.encode(images), grid)
    is_given = (torch.arange(grid.units) < prefix).view(1, 1, *grid)
    shown = torch.where(is_given, whole, torch.full_like(whole, GRAY))
    completions = tokenizer.decode(ids.flatten(0, 1), grid).unflatten(0, (-1, copies))
    rows = torch.cat([shown[:, None], completions, whole[:, None]], dim=1).flatten(0, 1)
    titles = ["given", *["drawn"] * copies, "image"]
    save_grid(rows, out, columns=copies + 2, titles=titles)
    save_drawing(ids.flatten(0, 1), tokenizer, grid, out.with_suffix(".gif"), given=prefix, columns=copies)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
