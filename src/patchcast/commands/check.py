"""`patchcast check`: the two tests of honesty on the user's own model, method and precision, with a plain verdict."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from patchcast.commands.build import build, resolve
from patchcast.commands.folder import CONFIG
from patchcast.data import open_images
from patchcast.honesty import Leak, dependencies, no_leak, noise_floor
from patchcast.pictures import draw_dependencies
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved

SECONDS = 40.0  # for the noise floor, so that the whole check takes about a minute
FLOOR = 0.97  # of the variance: chance alone takes an honest loss to 0.99
JUDGED = 24  # predictions of an image whose leak is looked for, evenly spread


def check(source: Path, *, out: Path | None = None) -> bool:
    """Check a run or a recipe; True if it is honest. Writes a picture of what each prediction depends on.

    Raises:
        ValueError: if `source` is neither a run folder nor a recipe.
    """
    recipe = _recipe(source)
    out = out or (source / "check.png" if source.is_dir() else Path("check.png"))
    console = Console()
    pretrainer = build(recipe)
    images = torch.randn(2, recipe.channels, *recipe.image_size, generator=torch.Generator().manual_seed(0))
    leaks = _leaks(recipe, pretrainer, images, console)
    keeps_floor = _keeps_floor(recipe, console)
    picture(pretrainer, images, title=f"{recipe.method} on {recipe.model}").savefig(out, dpi=120)
    console.print(f"What each prediction depends on: {out}")
    honest = keeps_floor and not leaks
    console.print("[bold green]Honest.[/]" if honest else "[bold red]Not honest: the method is shown its answers.[/]")
    return honest


def picture(pretrainer: Pretrainer, images: Tensor, *, title: str) -> Figure:
    """The dependency matrix of the first image, beside what its plan allows."""
    found, allowed = dependencies(pretrainer, images, pretrainer.draw(images, torch.Generator().manual_seed(1)))
    return draw_dependencies(found, allowed, title=title)


def _recipe(source: Path) -> Resolved:
    if (source / CONFIG).exists():
        return Resolved.load(source / CONFIG)
    if source.is_file():
        recipe = Recipe.load(source)
        return resolve(recipe, open_images(recipe.data, channels=recipe.channels))
    raise ValueError(f"{source} is neither a run folder nor a recipe in YAML")


def _leaks(recipe: Resolved, pretrainer: Pretrainer, images: Tensor, console: Console) -> bool:
    """Whether anything leaks in any of the ways in which training may run the method."""
    checkpointed = copy.deepcopy(pretrainer)
    checkpointed.backbone.model.set_grad_checkpointing(True)
    found = {
        "as it is": _leak(pretrainer, images),
        "with gradient checkpointing": _leak(checkpointed, images),
    }
    with torch.autocast("cpu", torch.bfloat16):
        found["in bf16"] = _leak(pretrainer, images)
    for name, leak in found.items():
        verdict = "no prediction moved" if leak.worst == 0 else f"[red]predictions moved by {leak.worst:.2g}[/]"
        alive = "" if leak.allowed > 0 else ", [red]but none moves with anything[/]"
        console.print(f"hidden pixels changed, {name}: {verdict}{alive}")
    return not all(leak.honest for leak in found.values())


def _leak(pretrainer: Pretrainer, images: Tensor) -> Leak:
    return no_leak(pretrainer, images, pretrainer.draw(images, torch.Generator().manual_seed(1)), limit=JUDGED)


def _keeps_floor(recipe: Resolved, console: Console) -> bool:
    """On a small grid: what the mask and the loss do does not depend on its size."""
    small = _small(recipe)
    pretrainer = build(small)
    if not pretrainer.target.has_noise_floor:
        console.print("noise: not tried, because the target is learnt along; a loss near 0 would be a collapse")
        return True
    began = time.perf_counter()
    noise_floor(copy.deepcopy(pretrainer), steps=2)
    steps = int(min(100, max(20, SECONDS / (time.perf_counter() - began) * 2)))
    ratio = noise_floor(pretrainer, steps=steps)
    told = "stayed at" if ratio > FLOOR else "[red]fell to"
    end = "" if ratio > FLOOR else "[/]"
    console.print(f"{steps} steps on noise: the loss {told} {ratio:.2f} of the variance{end}")
    return ratio > FLOOR


def _small(recipe: Resolved) -> Resolved:
    """Up to six units a side; of tiled images, four tiles of three by three."""
    down, right = build(recipe).backbone.stride
    size = (min(recipe.image_size[0], 6 * down), min(recipe.image_size[1], 6 * right))
    if recipe.tile_size is None:
        return dataclasses.replace(recipe, image_size=size)
    tile = min(recipe.tile_size, 3 * max(down, right))
    return dataclasses.replace(recipe, tile_size=tile, image_size=(2 * tile, 2 * tile))
