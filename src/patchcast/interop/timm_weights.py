"""Weights for timm, in its folder format, as on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    The keys are those of `timm.create_model(architecture, **model_args)`, all of them: `load_state_dict` with
    `strict=True` takes them. The classifier head, if there is one, was never trained, unless `label_names` are given,
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
        "num_classes": model.num_classes,
    }
    labels = {} if label_names is None else {"label_names": list(label_names)}
    arguments: dict[str, Any] = {"model_args": model_args, "model_config": {"pretrained_cfg": config, **labels}}

    def write_config(unfinished: Path) -> None:
        save_config_for_hf(model, str(unfinished), **arguments)
        # timm adds what it knows of its own weights, and refuses arguments that its instance was not built with.
        written = json.loads(unfinished.read_text())
        for name in SOURCE:
            written["pretrained_cfg"].pop(name, None)
        if type(model) is VisionTransformer and model.global_pool == "token":
            written["global_pool"] = "avg"
            written["model_args"] |= {"global_pool": "avg", "fc_norm": False}
        unfinished.write_text(json.dumps(written, indent=2) + "\n")

    write_weights(model.state_dict(), out / "model.safetensors")
    write_whole(out / "config.json", write_config)


SOURCE = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "tag", "license", "origin_url"}
"""Entries of timm's configuration that say where its own weights came from: these are not those."""
START_ARGUMENTS = {"pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of `timm.create_model` that say where a run's own start came from; they are not the model's."""
