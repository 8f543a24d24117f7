"""`patchcast show`: a picture of what a run's model predicts for chosen images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from patchcast.commands.build import evaluation
from patchcast.commands.folder import open_run
from patchcast.data import Images, denormalise, open_images
from patchcast.data.decode import UnreadableImageError, decode
from patchcast.pictures import Version, draw_versions
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved
from patchcast.reconstruction import reconstruct


def show(run: Path, images: Sequence[Path] = (), *, count: int = 8, seed: int = 0, out: Path | None = None) -> Path:
    """Draw image files, or the first of the run's data, through a run's model; returns where the picture lies."""
    recipe, pretrainer = open_run(run)
    out = out or run / "show.png"
    if images:
        chosen = torch.stack([evaluation(recipe)(_read(file, recipe)) for file in images])
        figure = _draw(recipe, pretrainer, chosen, seed)
    else:
        source = open_images(recipe.data, channels=recipe.channels)
        if "test" in source.splits:
            source = open_images(recipe.data, split="test", channels=recipe.channels)
        figure = picture(recipe, pretrainer, source, count=count, seed=seed)
    figure.savefig(out, dpi=120)
    print(f"Wrote {out}.")
    return out


def picture(recipe: Resolved, pretrainer: Pretrainer, source: Images, *, count: int, seed: int = 0) -> Figure:
    """The first `count` images of a source."""
    transform = evaluation(recipe)
    chosen = torch.stack([transform(source[i].image) for i in range(min(count, len(source)))])
    return _draw(recipe, pretrainer, chosen, seed)


def _draw(recipe: Resolved, pretrainer: Pretrainer, images: Tensor, seed: int) -> Figure:
    plan = pretrainer.draw(images, torch.Generator().manual_seed(seed))
    result = reconstruct(pretrainer.cpu(), images, plan)

    def drawn(pixels: Tensor) -> Tensor:
        return denormalise(pixels, recipe.mean, recipe.std)

    versions = {
        "image": Version(drawn(result.images)),
        "seen": Version(drawn(result.seen.nan_to_num()), result.seen.isnan().any(dim=1)),
        "predicted": Version(drawn(result.predicted)),
    }
    return draw_versions(versions, caption=pretrainer.target.lends)


def _read(file: Path, recipe: Resolved) -> Tensor:
    if not file.exists():
        raise ValueError(f"there is no file {file}")
    try:
        with file.open("rb") as opened:
            return decode(opened, recipe.channels or 3)
    except UnreadableImageError as problem:
        raise ValueError(f"{file} cannot be read: {problem}") from problem
