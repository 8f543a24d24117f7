"""Read weights from what a start's words name: a timm model, the hub, a folder, a file or a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from patchcast.backbones.adapters import create
from patchcast.files import read_weights
from patchcast.folder_files import CONFIG
from patchcast.interop.aim_weights import TRUNK
from patchcast.interop.ijepa_weights import PREDICTOR
from patchcast.interop.state_dicts import read_folder, without_module
from patchcast.recipe import Resolved
from patchcast.runs.run_folder import EVERYTHING
from patchcast.runs.timm_arguments import timm_args
from patchcast.starts.downloads import download, hub_or_cache, missing
from patchcast.starts.start import STEP, Start
from patchcast.starts.transformers_folders import (
    DECODER,
    LANDMARKS,
    VIT,
    dinov3_names,
    from_transformers_folder,
    mae_parts,
    vit_names,
)
from patchcast.training.checkpoints import latest_checkpoint
from patchcast.training.shards import weights_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
KINDS_OF_STARTS = (
    "a timm model (vit_small_patch16_224.augreg_in21k), hf-hub:NAME, local-dir:FOLDER, a run folder, a folder of "
    f"transformers or timm, or a file ({', '.join(SUFFIXES)})"
)
INSIDE = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module", "student")
"""Keys under which training scripts save the weights; averaged weights (EMA, teachers) first, which are better."""
AIM_LANDMARK, VIT_LANDMARK = "preprocessor.patchifier.proj.weight", "patch_embed.proj.weight"


def read_start(words: str) -> Start:
    """Read the weights that `words` name.

    Args:
        words: a timm model with or without a tag, `hf-hub:NAME`, `local-dir:FOLDER`, a folder, a file, or
            `MODEL=FILE_OR_FOLDER` where nothing in the files names the model.
    Raises:
        ValueError: if the words name nothing, or what they name cannot be read as weights.
    """
    name, is_named, rest = words.partition("=")
    if is_named and timm.is_model(name):
        return replace(read_start(rest), words=words, architecture=name, model_args={})
    if words.startswith("hf-hub:"):
        return _read_folder(download(words.removeprefix("hf-hub:")), words)
    path = Path(words.removeprefix("local-dir:")).expanduser()
    if words.startswith("local-dir:") or path.is_dir():
        return _read_folder(path, words)
    try:
        if path.is_file():
            return _of_content(read_weights(path), words)
    except FileNotFoundError as problem:
        raise ValueError(str(problem)) from problem
    if path.suffix in SUFFIXES or "/" in words:
        raise ValueError(f"there is no file or folder {words}; a start is {KINDS_OF_STARTS}")
    return _of_timm(words)


def _of_timm(words: str) -> Start:
    """Pretrained weights from timm's registry."""
    if not timm.is_model(words):
        try:
            create(words)
        except ValueError as problem:
            raise ValueError(f"{problem}; a start is {KINDS_OF_STARTS}") from problem
    config: Any = timm.get_pretrained_cfg(words)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise ValueError(f"timm has no weights of {words}, only the architecture")
    with hub_or_cache() as is_reached:
        try:
            model = timm.create_model(words, pretrained=True)
        except Exception as problem:  # the hub's own, the network's, RuntimeError of timm
            reason = missing(words, config.hf_hub_id, is_reached=is_reached, reason=problem)
            raise ValueError(reason) from problem
    return Start(
        words,
        "timm's weights",
        model.state_dict(),
        architecture=words.partition(".")[0],
        size=tuple(config.input_size[1:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
    )


def _read_folder(folder: Path, words: str) -> Start:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; a start is {KINDS_OF_STARTS}")
    if (folder / CONFIG).is_file():
        return _of_run(folder, words)
    config = _read_json(folder / "config.json")
    try:
        if "model_type" in config:
            return from_transformers_folder(folder, config, words)
        state = read_folder(folder)
    except FileNotFoundError as problem:
        raise ValueError(f"{folder} holds no run of patchcast (no {CONFIG}) and no weights: {problem}") from problem
    if "architecture" not in config:
        return _of_content(state, words)
    known = {**config, **config.get("pretrained_cfg", {})}
    size = known.get("input_size")
    return replace(
        _of_content(state, words),
        format="a folder of timm",
        architecture=config["architecture"],
        model_args=config.get("model_args", {}),
        size=None if size is None else (size[1], size[2]),
        mean=_numbers(known.get("mean")),
        std=_numbers(known.get("std")),
        squash=known.get("crop_mode") == "squash",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (ValueError, OSError) as problem:
        raise ValueError(f"{file} cannot be read as JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no configuration")
    return content


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _of_run(folder: Path, words: str) -> Start:
    """The weights of a run folder."""
    recipe, checkpoint = Resolved.load(folder / CONFIG), latest_checkpoint(folder)
    if (folder / EVERYTHING).exists():
        state, reached = read_weights(folder / EVERYTHING), "finished"
    elif checkpoint is not None:
        state, reached = weights_of(checkpoint), f"as of {checkpoint.stem}"
    else:
        raise ValueError(f"the run in {folder} has no weights yet")
    start = _of_ours(state, words)
    is_imagegpt = recipe.method in ("imagegpt", "imagegpt_masked")
    tokenizer = folder / "tokenizer.safetensors"
    size = (recipe.tile_size, recipe.tile_size) if recipe.tile_size else recipe.image_size
    return replace(
        start,
        format=f"a {recipe.method} run, {reached}",
        method=recipe.method,
        method_args=recipe.method_args,
        architecture=recipe.model,
        model_args=recipe.model_args if is_imagegpt else timm_args(recipe),
        size=size,
        mean=recipe.mean,
        std=recipe.std,
        tokenizer=tokenizer if tokenizer.exists() else None,
    )


def _of_ours(state: Mapping[str, Tensor], words: str) -> Start:
    """A pretrainer's weights, from its saved file or a checkpoint."""
    state = {name.removeprefix("pretrainer."): value for name, value in state.items()}
    tile, whole = "backbone.model.tile.model.", "backbone.model."
    prefix = tile if any(name.startswith(tile) for name in state) else whole
    encoder = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # A new run counts its steps from 0, its teacher's momentum too.
    parts = {name: value for name, value in state.items() if not name.startswith(prefix) and not STEP.fullmatch(name)}
    return Start(words, "weights of a pretrainer", encoder, parts)


def _of_content(content: Mapping[str, Any], words: str) -> Start:
    """Read a file of weights."""
    if {"encoder", "target_encoder", "predictor"} <= content.keys():
        return _of_ijepa(content, words)
    for name in INSIDE:
        if isinstance(content.get(name), Mapping):
            return _of_content(content[name], words)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{words} holds no tensors by their names")
    if any(re.match(r"(pretrainer\.)?backbone\.model\.", name) for name in state):
        return _of_ours(state, words)
    if any(prefix_of(state, landmark) is not None for landmark in LANDMARKS):
        return _of_transformers_file(state, words)
    for landmark, read in {AIM_LANDMARK: _of_aim, VIT_LANDMARK: _of_vit}.items():
        prefix = prefix_of(state, landmark)
        if prefix is not None:
            own, others = _split(state, prefix)
            start = read(own, words)
            return replace(start, left_out=(*start.left_out, *others))
    return Start(words, "a file of weights", {name.removeprefix("module."): state[name] for name in state})


def prefix_of(state: Mapping[str, Any], landmark: str) -> str | None:
    """The prefix of a name that every model of a kind has; None if no name ends with it.

    If a file holds several models, the prefix of the averaged one if the names say which it is, else the shortest.

    >>> prefix_of({"model.backbone.cls_token": 1, "head.weight": 2}, "cls_token")
    'model.backbone.'
    """
    prefixes = [name.removesuffix(landmark) for name in state if name.endswith(landmark)]
    whole = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    return min(whole, key=lambda prefix: ("teacher" not in prefix and "ema" not in prefix, len(prefix)), default=None)


def _split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return own, tuple(name for name in state if not name.startswith(prefix))


def _of_vit(state: dict[str, Tensor], words: str) -> Start:
    """A file with timm's names, which MAE's published files have too."""
    if not any(name.startswith("decoder_") for name in state):
        return Start(words, "a file of weights", state)
    return _of_mae(state, words)


def _of_mae(state: Mapping[str, Tensor], words: str, format: str = "an MAE checkpoint") -> Start:
    """A file with MAE's names: the encoder's are timm's, the decoder's are converted to ours."""
    parts = mae_parts(state)
    encoder = {name: value for name, value in state.items() if not DECODER.match(name)}
    left_out = () if parts else tuple(name for name in state if DECODER.match(name))
    return Start(words, format, encoder, parts, method="mae" if parts else None, left_out=left_out)


def _of_ijepa(content: Mapping[str, Any], words: str) -> Start:
    encoder, teacher, predictor = (without_module(content[name]) for name in ("encoder", "target_encoder", "predictor"))
    parts = {f"target.teacher.model.{name}": value for name, value in teacher.items()}
    for name, value in predictor.items():
        first, dot, rest = name.partition(".")
        if first in PREDICTOR:
            parts[f"{PREDICTOR[first]}{dot}{rest}"] = value.flatten() if first == "mask_token" else value
    return Start(words, "an I-JEPA checkpoint", encoder, parts, method="ijepa")


def _of_aim(state: dict[str, Tensor], words: str) -> Start:
    if "preprocessor.pos_embed" in state:  # AIMv2, which timm's filter knows
        return Start(words, "an AIMv2 checkpoint", state)
    encoder = {}
    for name, value in state.items():
        if not name.startswith("head."):
            for pattern, ours in TRUNK:
                name = re.sub(pattern, ours, name)
            encoder[name] = value
    return Start(words, "an AIM checkpoint", encoder, has_computed_positions=True)


def _of_transformers_file(state: dict[str, Tensor], words: str) -> Start:
    """A weight file of transformers without its config.json."""
    if prefix_of(state, VIT) is None:
        return Start(words, "a file of transformers' DINOv3", dinov3_names(state))
    named = vit_names(state)
    if any(DECODER.match(name) for name in named):
        return _of_mae(named, words, "a file of transformers' ViTMAE")
    return Start(words, "a file of transformers", named)
