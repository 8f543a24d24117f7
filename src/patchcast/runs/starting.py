"""What weights to start from decide in a recipe: model arguments, patch size, normalization, tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import timm

from patchcast.backbones.capabilities import is_imagegpt
from patchcast.data import Images, channel_statistics
from patchcast.files import read_json, write_text
from patchcast.folder_files import CONFIG
from patchcast.interop.timm_weights import START_ARGUMENTS
from patchcast.methods import Method
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.sizes import nominal_backbone
from patchcast.runs.timm_arguments import pretrained_cfg
from patchcast.starts import Start, StartReport, read_start
from patchcast.starts.opening import for_channels
from patchcast.starts.reading import SUFFIXES
from patchcast.training.checkpoints import latest_checkpoint

FILE = "start.json"
"""In a run folder: what became of the weights that the run started from."""
FROM_DATA = ("img_size", "in_chans", "patch_size")
"""Arguments of a model that other options of a recipe decide."""
FROM_START = ("image_size", "patch_size", "mean", "std", "tokenizer", "codes")
OF_PARTS = ("decoder_", "predictor_", "head_")
"""How options of methods begin that set the sizes of a decoder, predictor or head."""
KINDS = {"decoder_heads", "decoder_kernel", "predictor_heads", "predictor_kernel", "head_kernel"}
"""Options of methods that say which kind of decoder, predictor or head is wanted."""
OF_TARGETS = ("pixel_weight", "local", "layers", "normalize", "masks", "momentum")
"""Options of methods that say what is predicted, and how a teacher follows."""
STARTED_LR, STARTED_LAYER_DECAY, STARTED_EMA, FROZEN_FIRST = 0.25, 0.75, 0.999, 0.1
"""Defaults of a run that starts from weights: share of the method's rate, decay from block to block, decay of averaged
weights, and share of the steps in which the backbone waits for a new decoder or predictor. See docs/start.md."""
"""Options that follow from the start where they are left out."""


def find_start(recipe: Recipe) -> Start | None:
    """The weights that a recipe starts from, read; None if it starts from random ones, or timm loads them itself.

    Raises:
        ValueError: if they cannot be had.
    """
    if recipe.pretrained and is_imagegpt(recipe.model):
        raise ValueError(f"timm has no weights of {recipe.model}: leave out pretrained, or give --start FOLDER")
    words, file = recipe.start_words, recipe.model_args.get("checkpoint_path")
    if file and not Path(str(file)).is_file():
        raise ValueError(f"model_args names a checkpoint_path that is not there: {file}")
    return None if words is None or timm_loads(recipe) else read_start(words)


def is_started(recipe: Recipe) -> bool:
    """Whether a recipe starts from weights."""
    return recipe.start_words is not None or timm_loads(recipe)


def check_start_folder(recipe: Recipe) -> None:
    """Raises:
    ValueError: if the run to start from is in the folder of the new run.
    """
    if recipe.start is not None and not recipe.overwrite:
        path = Path(recipe.start.rpartition("=")[2].removeprefix("local-dir:")).expanduser()
        if path.exists() and (path / CONFIG).is_file() and path.resolve() == recipe.out.resolve():
            raise ValueError(
                f"--start begins a new run from the weights in {path}, so --out is another folder; without --start, "
                "the same command resumes that run, and --steps MORE continues it"
            )


def with_frozen_first(recipe: Resolved, fitted: StartReport | None) -> Resolved:
    """The backbone waits for a decoder or predictor that did not come with the weights."""
    is_new = fitted is None or any(name.startswith("predictor.") for name in fitted.new)
    return replace(recipe, freeze_first=round(FROZEN_FIRST * recipe.steps)) if is_new else recipe


def timm_loads(recipe: Recipe) -> bool:
    """Whether weights come in through `model_args`, which `timm.create_model` then loads."""
    args = recipe.model_args
    return bool(args.get("checkpoint_path")) or (recipe.pretrained and bool(START_ARGUMENTS & {*args}))


def as_started(recipe: Recipe) -> Recipe | None:
    """The recipe with what its start decided, if its folder holds checkpoints: to resume takes no start.

    None if there is nothing to resume.
    """
    file = recipe.out / CONFIG
    if recipe.overwrite or recipe.start_words is None or not file.is_file() or latest_checkpoint(recipe.out) is None:
        return None
    begun = Resolved.load(file)
    if (begun.pretrained, begun.start) != (recipe.pretrained, absolute_words(recipe.start)):
        return None
    filled: dict[str, Any] = {name: getattr(begun, name) for name in FROM_START if getattr(recipe, name) is None}
    filled["model"] = recipe.model or begun.model
    return replace(recipe, **filled, start=begun.start, model_args={**begun.model_args, **recipe.model_args})


def with_start(recipe: Recipe, method: Method, start: Start, *, is_settled: bool = False) -> Recipe:
    """The recipe with what a start decides and the recipe leaves out; nothing of the method, if it is settled."""
    filled: dict[str, Any] = {"start": absolute_words(recipe.start)}
    if recipe.model.partition(".")[0] == start.architecture:
        own = {name: value for name, value in start.model_args.items() if name not in FROM_DATA}
        filled["model_args"] = {**own, **recipe.model_args}
    is_imagegpt = method.codes == "colors"
    if start.tokenizer is not None and recipe.tokenizer is None and (is_imagegpt or start.method == recipe.method):
        filled["tokenizer"] = start.tokenizer
    if start.method == recipe.method and not is_settled:
        of_kind = () if KINDS & recipe.method_args.keys() else OF_PARTS  # another kind of decoder has sizes of its own
        own = {name: value for name, value in start.method_args.items() if name.startswith((*of_kind, *OF_TARGETS))}
        filled["method_args"] = {**own, **recipe.method_args}
    if recipe.image_size is None and recipe.tile_size is None:
        filled["image_size"] = size_of(start)
    recipe = replace(recipe, **filled)
    patch = None if is_imagegpt or recipe.patch_size is not None else patch_of(start)
    if patch is None or (patch, patch) == nominal_backbone(recipe).stride:
        return recipe
    return replace(recipe, patch_size=patch)


def size_of(start: Start) -> tuple[int, int] | None:
    """Height and width of the images of a start: told by the files, or a square by the position table."""
    patch, table = patch_of(start), next((v for name, v in start.encoder.items() if name.endswith("pos_embed")), None)
    if start.size is not None or patch is None or table is None or table.ndim != 3:
        return start.size
    side = isqrt(table.shape[1])  # without class and register tokens, which are fewer than a row
    return side * patch, side * patch


def absolute_words(words: str | None) -> str | None:
    """The words with a path in them made absolute: the run may be opened from another folder."""
    if words is None:
        return None
    name, is_named, rest = words.partition("=")
    if is_named and timm.is_model(name):
        return f"{name}={absolute_words(rest)}"
    if words.startswith("hf-hub:"):
        return words
    prefix = "local-dir:" if words.startswith("local-dir:") else ""
    path = Path(words.removeprefix(prefix)).expanduser()
    is_path = prefix or path.exists() or "/" in words or path.suffix in SUFFIXES
    return f"{prefix}{path.resolve()}" if is_path else words


def patch_of(start: Start) -> int | None:
    """Pixels per side of a patch of a vision transformer's weights; None for other networks."""
    if "patch_size" in start.model_args:
        patch = start.model_args["patch_size"]
        return patch if isinstance(patch, int) else None
    stems = [value for name, value in start.encoder.items() if name.endswith("patch_embed.proj.weight")]
    square = [stem for stem in stems if stem.ndim == 4 and stem.shape[2] == stem.shape[3]]
    return int(square[0].shape[2]) if square else None


def started_normalization(
    recipe: Recipe, start: Start | None, images: Images
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that the weights were trained with, for the data's channels.

    None where they have to be measured: where the first layer starts from random weights, or from weights for three of
    many bands.
    """
    config = pretrained_cfg(recipe.model)
    mean, std = (start and start.mean) or tuple(config.mean), (start and start.std) or tuple(config.std)
    if images.channels not in (1, 4, len(mean)) or (recipe.start_bands is not None and images.channels != 3):
        return None
    rest = channel_statistics(images) if images.channels > len(mean) else (mean, std)
    return tuple(  # type: ignore[return-value]
        for_channels(own, images.channels, rest=measured[-1]) for own, measured in zip((mean, std), rest, strict=True)
    )


def keep_report(fitted: StartReport, out: Path) -> None:
    """Write what became of the start into a run's folder."""
    write_text(out / FILE, json.dumps(fitted.to_dict(), indent=2) + "\n")


def check_unchanged(fitted: StartReport, folder: Path) -> None:
    """Raises:
    ValueError: if a run's start holds other weights than when the run began.
    """
    file = folder / FILE
    if file.is_file() and read_json(file)["digest"] != fitted.digest:
        raise ValueError(f"{fitted.words} holds other weights than when the run in {folder} started from it")
