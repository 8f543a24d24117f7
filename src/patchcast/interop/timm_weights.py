"""Weights for timm, in its folder format, as on the Hugging Face hub."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models._hub import save_config_for_hf
from torch import nn

from patchcast.files import write_weights, write_whole


def save_pretrained(
    model: nn.Module,
    out: Path,
    *,
    architecture: str,
    model_args: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    crop_mode: str = "center",
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json`, which timm loads.

    The keys are those of `timm.create_model(architecture, **model_args, num_classes=0)`, all of them: `load_state_dict`
    with `strict=True` takes them. A classifier head was never trained, and is left out, unless `label_names` are given,
    one for each of its classes. Or:

        timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)

    which makes a new head, and knows the image size, channels and normalization. `timm.data.create_transform` shows
    it what evaluation does here: the center of an image that just covers that size, or with `crop_mode="squash"` the
    whole image.

    A vision transformer that pools its class token is written as one that takes the mean over the units, after the same
    norm: `model(images)` without a head is then the mean of the units. What says where other weights came
    from is left out: timm's tag and license, and arguments that name a file of weights.
    """
    model_args = {name: value for name, value in model_args.items() if name not in START_ARGUMENTS}
    state = model.state_dict()
    classes: Any = model.num_classes
    if label_names is None and (headless := _without_head(state, architecture, model_args)) is not None:
        state, classes = headless, 0
    cfg: Any = model.pretrained_cfg
    size = tuple(image_size or model_args.get("img_size") or cfg["input_size"][1:])
    config = {
        **{name: value for name, value in cfg.items() if value is not None and name not in SOURCE},
        "architecture": architecture,
        "input_size": (model_args.get("in_chans", 3), *size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": crop_mode,
        "num_classes": classes,
    }
    labels = {} if label_names is None else {"label_names": list(label_names)}
    arguments: dict[str, Any] = {"model_args": model_args, "model_config": {"pretrained_cfg": config, **labels}}

    def write_config(unfinished: Path) -> None:
        save_config_for_hf(model, str(unfinished), **arguments)
        # timm adds what it knows of its own weights, and refuses arguments that its instance was not built with.
        written = json.loads(unfinished.read_text())
        for name in SOURCE:
            written["pretrained_cfg"].pop(name, None)
        written["num_classes"] = written["pretrained_cfg"]["num_classes"] = classes
        if classes != model.num_classes:
            written["model_args"] |= {"num_classes": classes}
        if type(model) is VisionTransformer and model.global_pool == "token":
            written["global_pool"] = "avg"
            written["model_args"] |= {"global_pool": "avg", "fc_norm": False}
        unfinished.write_text(json.dumps(written, indent=2) + "\n")

    write_weights(state, out / "model.safetensors")
    write_whole(out / "config.json", write_config)


def _without_head(state: dict[str, Any], architecture: str, model_args: dict[str, Any]) -> dict[str, Any] | None:
    """The weights of the same network without classes; None if it is another network in more than its head."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = timm.create_model(architecture, **{**model_args, "num_classes": 0}).state_dict()
    is_part = all(name in state and state[name].shape == weight.shape for name, weight in bare.items())
    return {name: state[name] for name in bare} if is_part else None


SOURCE = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "tag", "license", "origin_url"}
"""Entries of timm's configuration that say where its own weights came from: these are not those."""
START_ARGUMENTS = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of `timm.create_model` that say where a run's own start came from; they are not the model's."""
