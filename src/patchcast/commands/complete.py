"""`patchcast complete`: how a run would go on from the beginning of given images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from patchcast.commands.sample import picture_path
from patchcast.commands.show import chosen_images
from patchcast.data import denormalise
from patchcast.drawing.completion import complete_pixels
from patchcast.drawing.figures import Version, draw_versions
from patchcast.drawing.generation import complete, parts
from patchcast.drawing.sheets import GREY, save_drawing, save_grid
from patchcast.geometry import upsample
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved
from patchcast.runs.run_folder import open_run
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
    """Complete image files, or the first of the run's data, and write the results as PNG and as GIF.

    Each row of the PNG is an image: what is given of it, its completions, and the image itself in the palette's
    colours. The GIF has the completions alone. AIM makes one completion of each image, and no GIF.

    Raises:
        ValueError: if the run is of another method, an image cannot be read, or the options make no sense.
    """
    recipe, pretrainer = open_run(run)
    out = picture_path(out or run / "completions.png")
    if isinstance(pretrainer.view, Attend):
        if temperature != 1.0 or top_k is not None or top_p is not None:
            raise ValueError(
                f"{recipe.method} predicts the mean of what could follow and draws nothing: it takes no temperature, "
                "top_k or top_p"
            )
        return _complete_pixels(recipe, pretrainer, chosen_images(recipe, images, count=count), prefix, seed, out)
    network, _ = parts(pretrainer)
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


def _complete_pixels(
    recipe: Resolved, pretrainer: Pretrainer, images: torch.Tensor, prefix: int | None, seed: int, out: Path
) -> Path:
    """AIM on raw pixels: image, what is given of it, and its completion, one below the other."""
    plan: Any = pretrainer.draw(images, torch.Generator().manual_seed(seed))
    prefix = plan.grid.units // 2 if prefix is None else prefix
    completed = complete_pixels(pretrainer, images, prefix, generator=torch.Generator().manual_seed(seed))
    is_hidden = upsample((plan.rank >= prefix).unflatten(1, plan.grid), recipe.image_size)

    def drawn(pixels: torch.Tensor) -> torch.Tensor:
        return denormalise(pixels, recipe.mean, recipe.std)

    versions = {
        "image": Version(drawn(images)),
        "seen": Version(drawn(images), is_hidden),
        "completed": Version(drawn(completed)),
    }
    draw_versions(versions).savefig(out, dpi=120)
    print(f"Wrote {out}.")
    return out
