"""`--method auto`: the method that was best for this kind of model at equal seconds, and why."""

from __future__ import annotations

from dataclasses import replace

import timm

from patchcast.backbones.capabilities import AUTO
from patchcast.recipe import Recipe
from patchcast.runs.codes import NETWORKS
from patchcast.runs.sizes import nominal_backbone


def with_method(recipe: Recipe) -> tuple[Recipe, str]:
    """Replace the method "auto" of a recipe by a method, and say why; other recipes are returned unchanged.

    >>> from pathlib import Path
    >>> with_method(Recipe("auto", "test_vit", "digits", Path("out")))[0].method
    'mae'

    Raises:
        ValueError: if the model cannot be built.
    """
    if recipe.method != AUTO:
        return recipe, ""
    if recipe.model in NETWORKS:
        return replace(recipe, method="imagegpt"), "Method imagegpt: it is the one that these networks are made for."
    backbone = nominal_backbone(recipe)
    if "drop" in backbone.can:
        reason = (
            f"Method mae: {recipe.model} runs on the visible units alone, a quarter of them, and no other method "
            "without a teacher was better at equal seconds."
        )
        chosen = replace(recipe, method="mae")
    else:
        reason = (
            f"Method beit: {recipe.model} cannot leave hidden units out. Of the methods that replace them, beit, "
            "maskfeat and simmim were compared on a ViT, and none was better by more than the error."
        )
        chosen = replace(recipe, method="beit")
    config = timm.get_pretrained_cfg(recipe.model) if timm.is_model(recipe.model.partition(".")[0]) else None
    if recipe.start_words is None and config is not None and config.has_weights:
        reason += f" timm has weights of it: --start {recipe.model} is most often worth more than hours from scratch."
    return chosen, f"{reason} See docs/which.md."
