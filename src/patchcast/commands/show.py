"""`patchcast show`: a picture of what a run's model predicts for chosen images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from patchcast.data import Images, denormalise, open_images
from patchcast.data.decode import UnreadableImageError, decode
from patchcast.drawing.figures import Version, draw_versions
from patchcast.drawing.generation import complete
from patchcast.drawing.reconstruction import reconstruct
from patchcast.methods import METHODS
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved
from patchcast.runs.build import evaluation
from patchcast.runs.run_folder import open_run


def show(run: Path, images: Sequence[Path] = (), *, count: int = 8, seed: int = 0, out: Path | None = None) -> Path:
    """Draw image files, or the first of the run's data, through a run's model; returns where the picture lies."""
    recipe, pretrainer = open_run(run)
    out = out or run / "show.png"
    _draw(recipe, pretrainer, chosen_images(recipe, images, count=count), seed).savefig(out, dpi=120)
    print(f"Wrote {out}.")
    return out


def chosen_images(recipe: Resolved, files: Sequence[Path], *, count: int) -> Tensor:
    """Image files as the run's model sees them; or, if there are none, the first `count` of the run's test images."""
    if files:
        return torch.stack([evaluation(recipe)(_read(file, recipe)) for file in files])
    source = open_images(recipe.data, channels=recipe.channels)
    if "test" in source.splits:
        source = open_images(recipe.data, split="test", channels=recipe.channels)
    return _first(recipe, source, count)


def picture(recipe: Resolved, pretrainer: Pretrainer, source: Images, *, count: int, seed: int = 0) -> Figure:
    """The first `count` images of a source."""
    return _draw(recipe, pretrainer, _first(recipe, source, count), seed)


def _first(recipe: Resolved, source: Images, count: int) -> Tensor:
    transform = evaluation(recipe)
    return torch.stack([transform(source[i].image) for i in range(min(count, len(source)))])


def _draw(recipe: Resolved, pretrainer: Pretrainer, images: Tensor, seed: int) -> Figure:
    caption = "in the colours of the palette" if METHODS[recipe.method].causal else pretrainer.target.from_image
    return draw_versions(versions(recipe, pretrainer.cpu(), images, seed), caption=caption)


def versions(recipe: Resolved, pretrainer: Pretrainer, images: Tensor, seed: int = 0) -> dict[str, Version]:
    """Images, what a plan shows of them, and what is predicted; where pretrainer and images lie, results on the CPU."""
    if METHODS[recipe.method].causal:
        return _completions(pretrainer, images, seed)
    plan = pretrainer.draw(images, torch.Generator().manual_seed(seed))
    result = reconstruct(pretrainer, images, plan)

    def drawn(pixels: Tensor) -> Tensor:
        return denormalise(pixels.cpu(), recipe.mean, recipe.std)

    return {
        "image": Version(drawn(result.images)),
        "seen": Version(drawn(result.seen.nan_to_num()), result.seen.isnan().any(dim=1).cpu()),
        "predicted": Version(drawn(result.predicted)),
    }


def _completions(pretrainer: Pretrainer, images: Tensor, seed: int) -> dict[str, Version]:
    """What an ImageGPT makes of the upper halves of images, twice."""
    tokenizer: Any = pretrainer.target.tokenizer
    grid = pretrainer.backbone.grid(images)
    half = grid.units // 2
    ids = complete(pretrainer, images, half, copies=2, generator=torch.Generator().manual_seed(seed))
    is_hidden = (torch.arange(grid.units) >= half).view(1, *grid).expand(len(images), -1, -1)
    whole = tokenizer.decode(tokenizer.encode(images), grid).cpu()
    first, second = (tokenizer.decode(copy, grid).cpu() for copy in ids.unbind(dim=1))
    return {
        "image": Version(whole),
        "seen": Version(whole, is_hidden),
        "drawn": Version(first),
        "again": Version(second),
    }


def _read(file: Path, recipe: Resolved) -> Tensor:
    if not file.exists():
        raise ValueError(f"there is no file {file}")
    try:
        with file.open("rb") as opened:
            return decode(opened, recipe.channels or 3)
    except UnreadableImageError as problem:
        raise ValueError(f"{file} cannot be read: {problem}") from problem
