"""Weights for timm: its own folder format, as on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
) -> None:
    """Write `model.safetensors` and `config.json`, which timm loads with nothing else.

    The keys are those of `timm.create_model(architecture, **model_args)`, all of them: `load_state_dict` with
    `strict=True` takes them. The classifier head, if there is one, was never trained. Or:

        timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)

    which makes a new head, and knows the image size, channels and normalisation. `timm.data.create_transform` shows
    it what evaluation does here: the center of an image that just covers that size, or with `crop_mode="squash"` the
    whole image.
    """
    cfg: Any = model.pretrained_cfg
    size = tuple(model_args.get("img_size") or cfg["input_size"][1:])
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
    arguments = {"model_args": model_args, "model_config": {"pretrained_cfg": config}}
    write_weights(model.state_dict(), out / "model.safetensors")
    write_whole(out / "config.json", lambda unfinished: save_config_for_hf(model, str(unfinished), **arguments))


SOURCE = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "tag", "license", "origin_url"}
"""Entries of timm's configuration that say where its own weights came from: these are not those."""
