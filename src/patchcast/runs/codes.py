"""Recipe options that follow from predicting codes, and ImageGPT's networks by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.imagegpt_network import IMAGEGPT_SIZES, ImageGPT, ImageGPTBackbone
from patchcast.data import Images
from patchcast.geometry import Grid
from patchcast.methods import Method
from patchcast.recipe import Recipe, Resolved
from patchcast.tokenizers.base import Tokenizer
from patchcast.tokenizers.loading import load_tokenizer
from patchcast.tokenizers.palette import Palette
from patchcast.tokenizers.patches import PatchCodebook, PerUnit

NETWORKS: dict[str, dict[str, int]] = {
    "imagegpt": {},
    **{f"imagegpt_{name.lower()}": size._asdict() for name, size in IMAGEGPT_SIZES.items()},
}
"""ImageGPT's networks by their `--model` names; the size of the first is given by `model_args`."""
LARGEST_SIDE = 32  # of images, unless the recipe says otherwise: the paper's smallest, of 1,024 codes
USUAL_CODES = 512


def with_codes(recipe: Recipe, method: Method, images: Images) -> Recipe:
    """The recipe with the options that follow from predicting codes.

    Raises:
        ValueError: if an option contradicts them.
    """
    if method.codes != "colors" and recipe.model in NETWORKS:
        raise ValueError(f"{recipe.model} is for imagegpt; {recipe.method} uses timm's vision transformers")
    if method.codes is None:
        if recipe.codes is not None or recipe.tokenizer is not None:
            raise ValueError(f"{recipe.method} does not predict codes: leave out codes and tokenizer")
        return recipe
    found: dict[str, Any] = {"codes": recipe.codes or USUAL_CODES}
    tokenizer = None if recipe.tokenizer is None else load_tokenizer(recipe.tokenizer)
    if tokenizer is not None:
        if recipe.codes not in (None, tokenizer.vocabulary):
            raise ValueError(
                f"{recipe.tokenizer} has {tokenizer.vocabulary} codes, not {recipe.codes}; leave out codes"
            )
        found["codes"] = tokenizer.vocabulary
    if method.codes == "colors" or isinstance(tokenizer, Palette):
        _check_palette(recipe, tokenizer, images.channels)
        # Palettes use black -1 and white 1.
        found |= {"mean": (0.5,) * images.channels, "std": (0.5,) * images.channels}
        if any(statistic is not None and set(statistic) != {0.5} for statistic in (recipe.mean, recipe.std)):
            raise ValueError("palettes need black -1 and white 1: leave out mean and std")
    if method.codes == "colors":
        found |= _whole_images(recipe, images)
    return dataclasses.replace(recipe, **found)


def _check_palette(recipe: Recipe, tokenizer: Palette | PatchCodebook | None, channels: int) -> None:
    if tokenizer is not None and not isinstance(tokenizer, Palette):
        raise ValueError(f"{recipe.tokenizer} is a codebook of patches; {recipe.method} needs a palette")
    if channels not in (1, 3) or (tokenizer is not None and tokenizer.channels != channels):
        wanted = "1 or 3" if tokenizer is None else tokenizer.channels
        raise ValueError(f"the palette has {wanted} channels and the images {channels}; give --channels")


def _whole_images(recipe: Recipe, images: Images) -> dict[str, Any]:
    """Options of ImageGPT, whose images are encoded once and therefore not cropped at random."""
    if recipe.model not in NETWORKS:
        raise ValueError(f"{recipe.method} uses its own networks, {', '.join(NETWORKS)}; got {recipe.model}")
    for name in ("patch_size", "tile_size", "pretrained", "crop_scale"):
        if getattr(recipe, name) not in (None, False, (1.0, 1.0)):
            raise ValueError(f"{recipe.method} predicts each pixel of whole images: leave out {name}")
    network_args(recipe)
    height, width = images.typical_size
    size = recipe.image_size or (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE))
    return {"image_size": size, "crop_scale": (1.0, 1.0)}


def network_args(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `ImageGPT` for a recipe's model.

    Raises:
        ValueError: if there are too few of them, or unknown ones.
    """
    args = {**NETWORKS[recipe.model], **recipe.model_args}
    known = [name for name in inspect.signature(ImageGPT).parameters if name not in ("grid", "vocabulary", "causal")]
    if unknown := [name for name in args if name not in known]:
        raise ValueError(f"an ImageGPT has no {unknown[0]!r}; it has {', '.join(known)}")
    if missing := [name for name in ("depth", "width", "heads") if name not in args]:
        raise ValueError(
            f"{recipe.model} needs {', '.join(missing)} in model_args; imagegpt_s to imagegpt_xl have them"
        )
    return args


def imagegpt_backbone(recipe: Resolved, tokenizer: Tokenizer, *, causal: bool) -> ImageGPTBackbone:
    """A recipe's ImageGPT, over a tokenizer that gives each pixel a code."""
    grid = Grid(*recipe.image_size)
    network = ImageGPT(grid, tokenizer.vocabulary, causal=causal, **network_args(recipe))
    return ImageGPTBackbone(network, tokenizer, channels=recipe.channels)


def of_units(tokenizer: Tokenizer, backbone: Backbone) -> Tokenizer:
    """A tokenizer of a backbone's units; a palette gives a unit the code of its mean color.

    Raises:
        ValueError: if a codebook has units of another size.
    """
    if isinstance(tokenizer, PatchCodebook) and tokenizer.pixels.stride != backbone.stride:
        (down, right), (rows, cols) = tokenizer.pixels.stride, backbone.stride
        raise ValueError(f"the codebook has units of {down}x{right} pixels; {backbone.name}'s are {rows}x{cols}")
    return PerUnit(tokenizer, backbone.stride) if isinstance(tokenizer, Palette) else tokenizer
