"""Default image and patch sizes: about as many units as the model has at its own image size."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import timm
import torch

from patchcast.backbones import Backbone, wrap
from patchcast.geometry import Grid
from patchcast.interop.timm_weights import START_ARGUMENTS
from patchcast.recipe import Recipe
from patchcast.schedules import image_sizes

Size = tuple[int, int]

MOST_UNITS = 2**20
"""Units of an image, or of a tile, beyond which no network attends over all of them at once."""
SMALLEST_PATCH = 2  # a patch of one pixel has no spread to normalize by
INSTEAD = {"img_size": "image_size", "patch_size": "patch_size", "in_chans": "channels"}
"""timm arguments, and the recipe options that replace them."""


def with_own_options(recipe: Recipe) -> Recipe:
    """Move `img_size`, `patch_size` and `in_chans` from a recipe's model_args to its own options; and the last of
    several sizes to image_size.

    Raises:
        ValueError: if the recipe has a different value for one of them, or a value is not a size.
    """
    args, moved = dict(recipe.model_args), dict[str, Any]()
    if recipe.sizes is not None and recipe.image_size is None and "img_size" not in args:
        moved["image_size"] = image_sizes(recipe.sizes)[-1][1]
    for timms, ours in INSTEAD.items():
        if timms not in args:
            continue
        value = args.pop(timms)
        whole = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if not all(isinstance(side, int) and side > 0 for side in whole) or len(whole) != 2:
            raise ValueError(f"model_args gives {timms} {value!r}; leave it out and give --{ours}")
        if ours != "image_size" and whole[0] != whole[1]:
            raise ValueError(f"model_args gives {timms} {value!r}; patches are square: give --{ours}")
        moved[ours] = whole if ours == "image_size" else whole[0]
        if getattr(recipe, ours) not in (None, moved[ours]):
            raise ValueError(f"model_args gives {timms} {value!r}, and {ours} is {getattr(recipe, ours)}; give one")
    return dataclasses.replace(recipe, model_args=args, **moved)


SEVERAL: tuple[dict[str, bool], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""Arguments with which one or another of timm's classes takes images of several sizes."""


def for_several_sizes(recipe: Recipe, patch: int | None) -> Recipe:
    """The recipe with the argument that the model needs to take images of all its `sizes`.

    Args:
        patch: pixels per side of a patch; None for the model's own.
    Raises:
        ValueError: if the model takes one size only, or one that its units do not divide is asked for.
    """
    assert recipe.sizes is not None
    sizes = [size for _, size in image_sizes(recipe.sizes)]
    given = {} if patch is None else {"patch_size": patch}
    for args in SEVERAL:
        with suppress(Exception), torch.device("meta"), warnings.catch_warnings():  # whatever an architecture raises
            warnings.simplefilter("ignore")
            backbone = wrap(recipe.model, **_sized(recipe.model, sizes[-1]), **{**given, **recipe.model_args, **args})
            if not backbone.takes_any_size:
                continue
            down, right = backbone.stride
            wrong = next((size for size in sizes if size[0] % down or size[1] % right), None)
            if wrong is None and all(_has_units(backbone, size) for size in sizes):
                return dataclasses.replace(recipe, model_args={**recipe.model_args, **args})
            if wrong is not None:
                break
    else:
        raise ValueError(
            f"{recipe.model} takes images of one size only, or not all of {' '.join(recipe.sizes)}: leave out sizes, "
            "or take a model with positions that can be resampled, such as a plain vision transformer"
        )
    raise ValueError(
        f"the units of {recipe.model}, of {down}x{right} pixels, do not divide images of {_text(wrong)}, one of sizes; "
        f"{_text(_rounded(wrong, down))} is the nearest"
    )


def _has_units(backbone: Backbone, size: Size) -> bool:
    grid = backbone.grid(size)
    return backbone.units(torch.zeros(1, backbone.channels, *size)).shape[1] == grid.rows * grid.cols


def size_and_patch(recipe: Recipe, typical: Size) -> tuple[Size, int | None]:
    """(Height, width) and patch size in pixels (None: the model's own), for data of a typical size.

    Images at least as large as the model's image size are resized to it. Smaller images keep their size, rounded to
    whole patches, and get smaller patches. Where the patch size is fixed (pretrained weights, Swin, convolutional
    networks), images are enlarged until there are half as many units as the model has at its own size.

    Raises:
        ValueError: if a given image size is not a multiple of the given patch size or of any suitable one.
    """
    nominal = nominal_backbone(recipe)
    own = nominal.grid(nominal.image_size)
    if recipe.patch_size is not None:
        wanted = recipe.image_size or (typical if _is_smaller(typical, nominal) else nominal.image_size)
        whole = _rounded(wanted, recipe.patch_size)
        if recipe.image_size not in (None, whole):
            raise ValueError(
                f"patches of {recipe.patch_size} pixels do not divide images of {_text(wanted)}; "
                f"the nearest that they divide is --image_size {whole[0]} {whole[1]}"
            )
        return whole, recipe.patch_size
    if recipe.image_size is not None:
        return recipe.image_size, _patch_of(recipe, recipe.image_size, nominal, own)
    if not _is_smaller(typical, nominal) or recipe.start_words is not None:
        return nominal.image_size, None
    fitting = fitted(typical, own, _own_patch(nominal))
    if "drop" in nominal.can and _can_be_built(recipe, *fitting):
        return fitting[0], _or_own(fitting[1], nominal)
    return next(
        (size for size in _enlarged(typical, nominal, own) if _can_be_built(recipe, size)), nominal.image_size
    ), None


def check_units(recipe: Recipe, size: Size, patch: int | None) -> None:
    """Raises:
    ValueError: if images, or tiles, of this size have more than `MOST_UNITS` units.
    """
    if _units(size, SMALLEST_PATCH) <= MOST_UNITS:
        return
    down, right = _unit(recipe, patch)
    count, _ = count_units(recipe, size, patch)
    if count > MOST_UNITS:
        raise ValueError(
            f"{_text(size)} pixels are {count:,} units of {down}x{right} pixels, of which no network takes more than "
            f"{MOST_UNITS:,} at once; give a smaller image_size or tile_size, or a larger patch_size"
        )


def count_units(recipe: Recipe, size: Size, patch: int | None) -> tuple[int, int]:
    """The number of units of an image, and of pixels of a unit.

    >>> from pathlib import Path
    >>> count_units(Recipe("mae", "test_vit", "data", Path("out")), (64, 32), 8)
    (32, 64)
    """
    down, right = _unit(recipe, patch)
    return (size[0] // down) * (size[1] // right), down * right


def _unit(recipe: Recipe, patch: int | None) -> Size:
    """Height and width of a unit in pixels: of a network of stages, several patches."""
    if patch is None:
        return nominal_backbone(recipe).stride
    with torch.device("meta"), suppress(Exception):  # whatever an architecture raises that has no such patches
        return wrap(recipe.model, **{**_without_start(recipe), "patch_size": patch}).stride
    return patch, patch


def patch_for_tile(recipe: Recipe, tile: int) -> int | None:
    """The patch size of a model that is built for one tile (None: the model's own)."""
    nominal = nominal_backbone(recipe)
    if recipe.patch_size is not None or recipe.start_words is not None or "drop" not in nominal.can:
        return recipe.patch_size
    return _patch_of(recipe, (tile, tile), nominal, nominal.grid(nominal.image_size))


def fitted(size: Size, own: Grid, largest: int) -> tuple[Size, int]:
    """The image size nearest to the data's, and a patch size, that give about as many units as the model's own size.

    The result is the largest patch that divides the image size, with at least half the model's units on the shorter
    side and at most four times its units in total. If there is none, it is the patch whose multiples come nearest to
    the size, with half to twice as many units. Images too small for that get patches of 2 pixels.

    >>> fitted((64, 64), Grid(14, 14), 16), fitted((97, 97), Grid(14, 14), 16), fitted((8, 8), Grid(14, 14), 16)
    (((64, 64), 8), ((98, 98), 7), ((8, 8), 2))

    Args:
        size: of the data, (height, width).
        own: the model's grid at its own image size.
        largest: the model's own patch size.
    """
    if exact := dividing(size, own, largest):
        return size, exact
    patches = range(SMALLEST_PATCH, largest + 1)
    count = own.rows * own.cols
    rounded = [(_rounded(size, patch), patch) for patch in patches]
    near = [(whole, patch) for whole, patch in rounded if count <= 2 * _units(whole, patch) <= 4 * count]
    return min(near, key=lambda pair: (_change(size, pair[0]), -pair[1]), default=rounded[0])


def dividing(size: Size, own: Grid, largest: int) -> int | None:
    """The largest patch that divides an image size with about as many units as the model; None if there is none."""
    side, count = math.sqrt(own.rows * own.cols) / 2, own.rows * own.cols
    fitting = [patch for patch in range(largest, SMALLEST_PATCH - 1, -1) if size[0] % patch == size[1] % patch == 0]
    for patch in fitting:
        if min(size) / patch >= side and (patch == largest or _units(size, patch) <= 4 * count):
            return patch
    too_few = SMALLEST_PATCH in fitting and min(size) / SMALLEST_PATCH < side
    return SMALLEST_PATCH if too_few and _units(size, SMALLEST_PATCH) < 2 * count else None


def _patch_of(recipe: Recipe, size: Size, nominal: Backbone, own: Grid) -> int | None:
    """The patch size for a given image size."""
    largest = _own_patch(nominal)
    if recipe.start_words is not None or "drop" not in nominal.can or size == nominal.image_size:
        return None
    patch = dividing(size, own, largest)
    if patch is not None:
        return _or_own(patch, nominal) if patch == largest or _can_be_built(recipe, size, patch) else None
    if not _can_be_built(recipe, *fitted(nominal.image_size, own, largest)):
        return None  # the model has no `patch_size` argument; it raises its own error for a wrong image size
    whole, near = fitted(size, own, largest) if _is_smaller(size, nominal) else (_rounded(size, largest), largest)
    raise ValueError(
        f"no patch of up to {largest} pixels cuts images of {_text(size)} into about as many units as "
        f"{recipe.model} has, {own.rows * own.cols}; give --image_size {whole[0]} {whole[1]} (in patches of {near}), "
        "or give --patch_size too"
    )


def _enlarged(typical: Size, nominal: Backbone, own: Grid) -> Iterator[Size]:
    """Image sizes with at least half as many units as the model's own size: first in the data's shape, then square."""
    down, right = nominal.stride
    height, width = typical[0] / down, typical[1] / right
    needed = own.rows * own.cols / 2
    rows, cols = max(1, round(height)), max(1, round(width))
    if rows * cols < needed:
        scale = math.sqrt(needed / (height * width))
        rows, cols = math.ceil(height * scale), math.ceil(width * scale)
    yield rows * down, cols * right
    side = math.ceil(math.sqrt(max(needed, rows * cols)))
    yield side * down, side * right


def _can_be_built(recipe: Recipe, size: Size, patch: int | None = None) -> bool:
    """Whether the model, built on the meta device, gives one feature for every unit of images of this size."""
    args = {} if patch is None else {"patch_size": patch}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = wrap(recipe.model, **_sized(recipe.model, size), **args, **recipe.model_args)
            grid = backbone.grid(size)
            units = backbone.units(torch.zeros(1, backbone.channels, *size)).shape[1]
    except Exception:  # architectures raise many kinds of errors for sizes that they do not support
        return False
    return units == grid.rows * grid.cols and (patch is None or backbone.stride == (patch, patch))


def _sized(model: str, size: Size) -> dict[str, Any]:
    """The argument that sets the image size of models with a fixed input size; empty for others."""
    config: Any = timm.get_pretrained_cfg(model)
    return {"img_size": size} if config.fixed_input_size else {}


def nominal_backbone(recipe: Recipe) -> Backbone:
    """The model at timm's default size on the meta device, to read its sizes."""
    args = _without_start(recipe)
    with torch.device("meta"):
        for size in (None, 378, 320):  # some default sizes are not a multiple of the units
            try:
                return wrap(recipe.model, **({} if size is None else {"img_size": size}), **args)
            except ValueError as problem:
                if "do not divide" not in str(problem):
                    raise
            except Exception as problem:  # an architecture can raise nearly anything for wrong arguments
                raise ValueError(
                    f"{recipe.model} cannot be built with these model_args: {_reason(problem)}"
                ) from problem
        return wrap(recipe.model, img_size=352, **args)


def _without_start(recipe: Recipe) -> dict[str, Any]:
    return {name: value for name, value in recipe.model_args.items() if name not in START_ARGUMENTS}


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn whatever the code of a network raises into one sentence.

    Raises:
        ValueError: that `what` cannot be built, and why.
    """
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as problem:  # also RuntimeError where there is no memory
        raise ValueError(f"{what} cannot be built: {_reason(problem)}") from problem


def _reason(problem: Exception) -> str:
    reason = " ".join(str(problem).split())
    return f"{type(problem).__name__} {reason}" if isinstance(problem, (LookupError, OSError)) or not reason else reason


def _own_patch(nominal: Backbone) -> int:
    return min(nominal.stride)


def _or_own(patch: int, nominal: Backbone) -> int | None:
    return None if patch == _own_patch(nominal) else patch


def _is_smaller(typical: Size, nominal: Backbone) -> bool:
    """Whether both sides are smaller: enlarging such images would add work and no information."""
    return typical[0] < nominal.image_size[0] and typical[1] < nominal.image_size[1]


def _rounded(size: Size, patch: int) -> Size:
    return max(1, round(size[0] / patch)) * patch, max(1, round(size[1] / patch)) * patch


def _units(size: Size, patch: int) -> int:
    return (size[0] // patch) * (size[1] // patch)


def _change(size: Size, whole: Size) -> float:
    """The larger of the two sides' absolute log scale factors."""
    return max(abs(math.log(new / old)) for old, new in zip(size, whole, strict=True))


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
