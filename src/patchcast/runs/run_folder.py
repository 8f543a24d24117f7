"""A run's folder: where its config, weights, log and pictures lie, and whether it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from patchcast.files import read_weights
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import build
from patchcast.runs.tokenizer import kept_tokenizer
from patchcast.training.checkpoints import latest_checkpoint

CONFIG, METRICS = "config.yaml", "metrics.csv"
BAD_IMAGES = "bad-images.txt"
ENCODER, EVERYTHING = "model.safetensors", "pretrainer.safetensors"


def claim(recipe: Resolved) -> bool:
    """Make the folder of a resolved recipe; True if it holds an unfinished run of the same recipe, to go on with.

    Raises:
        ValueError: if the folder holds a finished run, another run, or something else.
    """
    out = recipe.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()):
        config = out / CONFIG
        if not config.exists():
            raise ValueError(f"{out} is not empty and holds no run of patchcast; choose another --out")
        differences = recipe.differences(Resolved.load(config))
        if differences:
            raise ValueError(f"{out} holds another run ({differences}); choose another --out")
        if (out / EVERYTHING).exists():
            raise ValueError(f"{out} holds this run already, finished; choose another --out to run it again")
        return latest_checkpoint(out) is not None
    out.mkdir(parents=True, exist_ok=True)
    recipe.save(out / CONFIG)
    return False


def as_begun(recipe: Recipe) -> Recipe:
    """The recipe, with the crop mode of the run in its folder if it names none: the default was another once, and the
    command that began a run resumes it."""
    config = recipe.out / CONFIG
    if recipe.crop_mode is not None or not config.exists():
        return recipe
    return replace(recipe, crop_mode=Resolved.load(config).crop_mode)


def save_weights(state: Mapping[str, Tensor], out: Path) -> None:
    """All of a pretrainer's weights, for `show` and for going on; `export` writes the encoder alone."""
    save_file({name: each.contiguous() for name, each in state.items()}, out / EVERYTHING)


def open_run(out: Path) -> tuple[Resolved, Pretrainer]:
    """A run's recipe, and its pretrainer with the weights it has reached.

    Raises:
        ValueError: if the folder holds no run, or one that has no weights yet.
    """
    if not (out / CONFIG).exists():
        raise ValueError(f"{out} holds no run of patchcast: it has no {CONFIG}")
    recipe = Resolved.load(out / CONFIG)
    pretrainer = build(recipe, kept_tokenizer(out))
    checkpoint = latest_checkpoint(out)
    if (out / EVERYTHING).exists():
        pretrainer.load_state_dict(read_weights(out / EVERYTHING))
    elif checkpoint is not None:
        state = read_weights(checkpoint)["state_dict"]
        pretrainer.load_state_dict({name.removeprefix("pretrainer."): each for name, each in state.items()})
    else:
        raise ValueError(f"the run in {out} has no weights yet")
    return recipe, pretrainer.eval()
