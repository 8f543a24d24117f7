"""Run folders: file names, and whether a run may use a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from patchcast.backbones.capabilities import AUTO
from patchcast.files import write_weights
from patchcast.recipe import EARLIER, NOT_LEARNED, Recipe, Resolved
from patchcast.training.checkpoints import latest_checkpoint

CONFIG, METRICS = "config.yaml", "metrics.csv"
BAD_IMAGES = "bad-images.txt"
ENCODER, EVERYTHING = "model.safetensors", "pretrainer.safetensors"
FORECAST = "forecast.json"
"""What a run was expected to take when it began, and the `minutes` that were asked for."""
RESULTS = "metrics.json"
"""Written last: a run without it is not finished, whatever else its folder holds."""
DECIDES = {*Resolved.__annotations__} - {*EARLIER} - NOT_LEARNED
"""Options that a recipe may leave out and a config of a run never does, of those that decide what is learned."""


def claim(recipe: Resolved) -> bool:
    """Create the folder of a resolved recipe; True if it holds an unfinished run of this recipe.

    Raises:
        ValueError: if the folder holds a finished run, another run, or something else.
    """
    out = recipe.out
    if holds_run(out):
        differences = recipe.differences(Resolved.load(out / CONFIG))
        if differences:
            raise ValueError(f"{out} holds another run ({differences}); choose another --out")
        if (out / EVERYTHING).exists() and (out / RESULTS).exists():
            raise ValueError(f"{out} holds this run already, finished; choose another --out to run it again")
        return latest_checkpoint(out) is not None
    out.mkdir(parents=True, exist_ok=True)
    recipe.save(out / CONFIG)
    return False


def holds_run(out: Path) -> bool:
    """Whether a run has begun in a folder.

    Raises:
        ValueError: if the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / CONFIG).exists():
        raise ValueError(f"{out} is not empty and holds no run of patchcast; choose another --out")
    return (out / CONFIG).exists()


def as_begun(recipe: Recipe) -> tuple[Recipe, bool]:
    """The recipe with what its run has for options that it leaves out, and whether it leaves nothing to defaults.

    For runs that have begun, for complete configs, and for the commands of model cards. Options that an earlier version
    did not have get its behavior, and defaults that have changed since then change none of these.
    """
    auto = recipe.batch_size == "auto"
    recipe = replace(recipe, batch_size=recipe.given_batch)
    left: dict[str, Any] = {name: EARLIER[name] for name in EARLIER if getattr(recipe, name) is None}
    if (recipe.out / CONFIG).is_file():
        begun = Resolved.load(recipe.out / CONFIG)
        left = {name: getattr(begun, name) for name in (*left, *(["lr"] if recipe.lr is None else []))}
        if recipe.steps is None and recipe.epochs is None:
            left["steps"] = begun.steps
        if recipe.method == AUTO:
            left["method"] = begun.method
        if recipe.method in (AUTO, begun.method):
            left["method_args"] = {**begun.method_args, **recipe.method_args}
        if recipe.precision in (None, "auto"):
            left["precision"] = begun.precision
        if auto:
            left["accumulate"] = begun.accumulate
        if recipe.minutes is not None:
            _check_minutes(recipe, begun)
            left["minutes"] = None
        return replace(recipe, **left), True
    if all(getattr(recipe, name) is not None for name in DECIDES):
        return replace(recipe, **left), True
    return recipe, False


def save_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """Save all weights of a pretrainer, for opening the run again; `export` writes the encoder only."""
    write_weights({name: weight.contiguous() for name, weight in state.items()}, out / EVERYTHING)


def _check_minutes(recipe: Recipe, begun: Resolved) -> None:
    """Raises:
    ValueError: if the run in the recipe's folder was begun for another time, or for a number of steps.
    """
    minutes = None
    with suppress(OSError, ValueError, KeyError):
        minutes = json.loads((recipe.out / FORECAST).read_text(encoding="utf-8"))["minutes"]
    if minutes != recipe.minutes:
        time = f"{begun.steps:,} steps" if minutes is None else f"{minutes:g} minutes"
        raise ValueError(f"{recipe.out} holds a run of {time}, not of {recipe.minutes:g} minutes; choose another --out")
