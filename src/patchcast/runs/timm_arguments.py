"""The arguments with which timm builds a recipe's model."""

from __future__ import annotations

from typing import Any

import timm

from patchcast.recipe import Resolved


def timm_args(recipe: Resolved) -> dict[str, Any]:
    """The arguments of `timm.create_model` for a resolved recipe's model."""
    args: dict[str, Any] = {}
    if recipe.tile_size is not None:
        args["img_size"] = [recipe.tile_size] * 2
    elif pretrained_cfg(recipe.model).fixed_input_size:
        args["img_size"] = list(recipe.image_size)
    if recipe.patch_size is not None:
        args["patch_size"] = recipe.patch_size
    args["in_chans"] = recipe.channels
    return {**args, **recipe.model_args}


def pretrained_cfg(model: str) -> Any:
    """What timm knows of an architecture without building it."""
    config = timm.get_pretrained_cfg(model)
    if config is None:
        raise ValueError(f"timm has no model {model!r}")
    return config
