"""Run folders: file names, and whether a run may use a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from patchcast.arguments import words_of
from patchcast.backbones.capabilities import AUTO
from patchcast.files import UNFINISHED, read_json, write_json, write_weights
from patchcast.folder_files import CONFIG, RESULTS
from patchcast.recipe import EARLIER, NOT_LEARNED, Recipe, Resolved
from patchcast.schedules import warmup_cosine
from patchcast.training.checkpoints import latest_checkpoint, step_of
from patchcast.training.lock import LOCK, locked

BAD_IMAGES = "bad-images.txt"
ENCODER, EVERYTHING = "model.safetensors", "pretrainer.safetensors"
FORECAST = "forecast.json"
"""What a run was expected to take when it began, and the `minutes` that were asked for."""
OVERWRITING = "overwriting.json"
"""The options of the command with --overwrite that began a run: the same command resumes it until it is finished."""
DECIDES = {*Resolved.__annotations__} - {*EARLIER} - NOT_LEARNED
"""Options that a recipe may leave out and a config of a run never does, of those that decide what is learned."""


LENGTH = ("steps", "epochs")
"""Options that a run may be continued with other values of."""


def claim(recipe: Resolved) -> str:
    """Create the folder of a resolved recipe; returns a sentence if it holds a run that is resumed or continued.

    Raises:
        ValueError: if the folder holds a finished run, another run, or something else.
    """
    out = recipe.out
    if recipe.overwrite:
        recipe = replace(recipe, overwrite=False)
        _throw_away(out)
    if holds_run(out):
        begun = Resolved.load(out / CONFIG)
        differences = recipe.differences(begun, besides=LENGTH)
        if differences:
            raise ValueError(
                f"{out} holds another run ({differences}); choose another --out, or give --overwrite to throw that run "
                "away"
            )
        checkpoint = latest_checkpoint(out)
        if recipe.steps != begun.steps:
            return _continue(recipe, begun, checkpoint)
        if is_finished(out):
            raise ValueError(
                f"{out} holds this run already, finished after {begun.steps:,} steps; --steps MORE continues it, "
                f"--start {out} with another --out begins a new run from its weights, and --overwrite throws it away"
            )
        return "" if checkpoint is None else f"Resuming the run in {out}."
    out.mkdir(parents=True, exist_ok=True)
    recipe.save(out / CONFIG)
    return ""


def is_finished(out: Path) -> bool:
    """Whether a folder holds a run with its weights and results."""
    return (out / EVERYTHING).is_file() and (out / RESULTS).is_file()


def check_overwriting(recipe: Recipe) -> None:
    """Raises:
    ValueError: if there is no run to throw away, or the recipe needs a file of it.
    """
    out = recipe.out
    if _is_used(out) and not (out / CONFIG).is_file():
        raise ValueError(
            f"{out} holds no run of patchcast, and --overwrite throws away runs only; choose another --out"
        )
    named = {"start": recipe.start, "data": recipe.data, "tokenizer": recipe.tokenizer, "teacher": recipe.teacher}
    for name, value in named.items():
        path = Path(str(value).rpartition("=")[2].removeprefix("local-dir:")).expanduser()
        if value is not None and path.exists() and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"{name}={value} is in {out}, which --overwrite would throw away; choose another --out")


def without_second_overwriting(recipe: Recipe) -> Recipe:
    """The recipe without `overwrite`, if the unfinished run in its folder was begun by the same command.

    A command that was stopped is typed again, or a cluster starts it again: it then resumes what it began, as every
    other command does, and does not throw it away.
    """
    out = recipe.out
    if not recipe.overwrite or not (out / OVERWRITING).is_file() or not (out / CONFIG).is_file() or is_finished(out):
        return recipe
    return replace(recipe, overwrite=False) if read_json(out / OVERWRITING) == _asked(recipe) else recipe


def note_overwriting(recipe: Recipe) -> None:
    """Write down which command began the run in a folder by throwing another away."""
    write_json(recipe.out / OVERWRITING, _asked(recipe))


def _asked(recipe: Recipe) -> dict[str, list[str]]:
    return {name: words for name, words in words_of(recipe) if name not in NOT_LEARNED}


def _throw_away(out: Path) -> None:
    """Delete a run; its config goes last, so that what is left after an interruption is still known as a run."""
    if not (out / CONFIG).is_file():
        return
    with locked(out):
        (out / OVERWRITING).unlink(missing_ok=True)  # first: half of an old run is not resumed
        for path in sorted(out.iterdir(), key=lambda path: path.name == CONFIG):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _continue(recipe: Resolved, begun: Resolved, checkpoint: Path | None) -> str:
    """Make the run in a folder one of more steps."""
    out = recipe.out
    if recipe.steps < begun.steps:
        raise ValueError(
            f"the run in {out} has {begun.steps:,} steps; give more with --steps to continue it (got "
            f"{recipe.steps:,}), or choose another --out"
        )
    if checkpoint is None and is_finished(out):
        raise ValueError(
            f"the run in {out} has no checkpoint to continue from; begin a new run from its weights with --start {out} "
            "and another --out"
        )
    with locked(out):
        for name in (RESULTS, EVERYTHING):  # in this order: a run without the first is not finished
            (out / name).unlink(missing_ok=True)
        recipe.save(out / CONFIG)
    if checkpoint is None:
        return ""
    done = step_of(checkpoint)
    lr = recipe.lr * warmup_cosine(done, steps=recipe.steps, warmup=recipe.warmup)
    return (
        f"Continuing the run in {out} after step {done:,}, to {recipe.steps:,} instead of {begun.steps:,}: the "
        f"learning rate is from here on that of a run of {recipe.steps:,} steps, {lr:.3g} at first."
    )


def holds_run(out: Path) -> bool:
    """Whether a run has begun in a folder.

    Raises:
        ValueError: if the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if _is_used(out) and not (out / CONFIG).exists():
        raise ValueError(f"{out} is not empty and holds no run of patchcast; choose another --out")
    return (out / CONFIG).exists()


def _is_used(out: Path) -> bool:
    """Whether a folder holds anything. What another process of the same run is just writing does not count."""
    return out.is_dir() and any(path.name != LOCK and not UNFINISHED.match(path.name) for path in out.iterdir())


def as_begun(recipe: Recipe) -> tuple[Recipe, bool]:
    """The recipe with what its run has for options that it leaves out, and whether it leaves nothing to defaults.

    For runs that have begun, for complete configs, and for the commands of model cards. Options that an earlier version
    did not have get its behavior, and defaults that have changed since then change none of these.
    """
    auto = recipe.batch_size == "auto"
    recipe = replace(recipe, batch_size=recipe.given_batch)
    left: dict[str, Any] = {name: EARLIER[name] for name in EARLIER if getattr(recipe, name) is None}
    if not recipe.overwrite and (recipe.out / CONFIG).is_file():
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


def located_data(recipe: Recipe, folder: Path) -> str:
    """The data of a run, also from another folder than the one in which it was started.

    A relative path in a config is relative to that folder: the one from which the recipe's `out` is the run's folder.
    """
    path = Path(recipe.data)
    if recipe.data == "digits" or ":" in recipe.data or path.is_absolute() or recipe.out.is_absolute():
        return recipe.data
    parts, own = folder.resolve().parts, recipe.out.parts
    started_in = Path(*parts[: -len(own)]) if own and parts[-len(own) :] == own else Path.cwd()
    before_braces = Path(recipe.data.partition("{")[0] + "_").parent if "{" in recipe.data else path
    is_elsewhere = started_in != Path.cwd() and (started_in / before_braces).exists()
    return str(started_in / path) if is_elsewhere else recipe.data


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
