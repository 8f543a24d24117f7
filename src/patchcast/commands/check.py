"""`patchcast check`: run both honesty tests on the user's own model and method."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from patchcast.backbones.tiled import Tiled
from patchcast.data.names import escape
from patchcast.drawing.figures import draw_dependencies
from patchcast.files import write_figure
from patchcast.folder_files import CONFIG
from patchcast.honesty import Leak, dependencies, examine, no_leak, perturbed
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import build
from patchcast.runs.run import Run, start_run, untrained_run
from patchcast.stages import stage

LEAK_TEST_SECONDS = 8.0  # for the leak test at full size


def run_check(source: Path, *, out: Path | None = None) -> bool:
    """Check a run or a recipe; True if it is honest. Writes a picture of what each prediction depends on.

    Raises:
        ValueError: if `source` is neither a run folder nor a recipe.
    """
    run = _open(source)
    recipe, full = run.recipe, run.pretrainer
    out = out or (source / "check.png" if source.is_dir() else Path("check.png"))
    console, began = Console(highlight=False), time.perf_counter()
    small = build(_small(recipe, full), run.method, run.tokenizer, None if run.teacher is None else run.teacher.target)
    with stage("Changing pixels and training on noise"):
        verdict = examine(small)
        leaks_at_full_size = _at_full_size(full)
    images = torch.randn(1, recipe.channels, *small.backbone.image_size, generator=torch.Generator().manual_seed(0))
    write_figure(dependency_figure(small, images, title=f"{recipe.method} on {recipe.model}"), out)
    verdict = dataclasses.replace(verdict, leaks={**verdict.leaks, "at full size": leaks_at_full_size})
    grid = small.backbone.grid(small.backbone.image_size)
    console.print(f"{recipe.method} on {escape(recipe.model)}, on {grid} units:")
    console.print(f"{verdict}", style="green" if verdict.honest else "red")
    console.print(f"What each prediction depends on: {escape(out)} ({time.perf_counter() - began:.0f} s)")
    return verdict.honest


def dependency_figure(pretrainer: Pretrainer, images: Tensor, *, title: str) -> Figure:
    """The dependency matrix of the first image, and the dependencies that its plan allows."""
    plan = pretrainer.draw(images, torch.Generator().manual_seed(1))
    return draw_dependencies(*dependencies(pretrainer, images, plan), title=title)


def _open(source: Path) -> Run:
    """A run with initial weights: leaks depend on the structure of the network and not on its weights."""
    if (source / CONFIG).exists():
        return untrained_run(source)
    if source.is_file():
        return start_run(Recipe.load(source))
    raise ValueError(f"{source} is neither a run folder nor a recipe in YAML")


def _at_full_size(pretrainer: Pretrainer) -> Leak:
    """The leak test at the recipe's own size, for as many predictions as time allows, at least two."""
    backbone = perturbed(pretrainer).backbone
    images = torch.randn(2, backbone.channels, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    plan = pretrainer.draw(images, torch.Generator().manual_seed(1))
    began = time.perf_counter()
    with torch.no_grad():
        pretrainer(images, plan)
    affordable = LEAK_TEST_SECONDS / (time.perf_counter() - began) / 2
    return no_leak(pretrainer, images, plan, limit=int(min(24, max(2, affordable))))


def _small(recipe: Resolved, pretrainer: Pretrainer) -> Resolved:
    """The recipe with at most six units per side (four for wide networks): leaks do not depend on the size.

    For tiled images, at most two tiles per side with half as many units."""
    backbone = pretrainer.backbone
    units = 6 if backbone.width < 512 else 4
    (height, width), (down, right) = recipe.image_size, backbone.stride
    if not isinstance(backbone, Tiled):
        return dataclasses.replace(recipe, image_size=(min(height, units * down), min(width, units * right)))
    tile = min(backbone.tile_size[0], units // 2 * max(down, right))
    size = (tile * min(2, backbone.most.rows), tile * min(2, backbone.most.cols))
    return dataclasses.replace(recipe, tile_size=tile, image_size=size)
