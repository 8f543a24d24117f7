"""From a recipe to its parts; defaults follow from the model, the data and the method."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

import torch

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.capabilities import DEFAULT_READOUT
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.backbones.tile_geometry import tiles_of
from patchcast.backbones.tiled import Tiled
from patchcast.data import Augment, Evaluate, Images, Source, channel_statistics
from patchcast.data.digits import PACKAGED
from patchcast.methods import METHODS, Method
from patchcast.positions import Positions
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs import starting
from patchcast.runs.codes import imagegpt_backbone, of_units, with_codes
from patchcast.runs.defaults import Chosen, choose_defaults, filled
from patchcast.runs.sizes import building, check_units, count_units, for_several_sizes, patch_for_tile, size_and_patch
from patchcast.runs.starting import started_normalization, timm_loads
from patchcast.runs.timm_arguments import timm_args
from patchcast.stages import stage
from patchcast.starts import Start, StartReport, fit, fit_parts
from patchcast.targets import Target
from patchcast.tokenizers.base import Tokenizer
from patchcast.training.engine import default_precision, default_workers
from patchcast.training.optimization import block_matrices


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: if there is none; suggests a similar name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise ValueError(f"no method is called {name!r}; {hint}")
    return METHODS[name]


TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


def resolve(
    recipe: Recipe, method: Method, source: Source, start: Start | None = None, *, is_settled: bool = False
) -> tuple[Resolved, dict[str, Chosen]]:
    """The recipe with a value for every option, so that its config runs the same again; and what was chosen, and why.

    Args:
        start: the weights that the run starts from, if they are not random.
        is_settled: whether it is the recipe of a run that has begun, so that nothing is chosen; see `as_begun`.
    Raises:
        ValueError: if one of the method's options or the model is unknown, or the sizes do not fit.
    """
    _check_options(recipe.method, method, recipe.method_args)
    if source.is_stream:
        _check_stream(recipe, method)
    images = source.train
    recipe = with_codes(recipe, method, images)
    size, patch = _size_and_patch(recipe, method, images)
    chosen: dict[str, Chosen] = {}
    if not is_settled:
        units = count_units(recipe, size, patch) if method.few else (None, None)
        chosen = choose_defaults(recipe, method, None if source.is_stream else len(images), *units)
    recipe = filled(recipe, chosen)
    batch, epochs = recipe.given_batch, recipe.epochs
    assert batch is not None and epochs is not None  # noqa: PT018
    pieces = recipe.devices * recipe.nodes * recipe.accumulate
    if batch % pieces:
        raise ValueError(
            f"a batch of {batch} images cannot be shared evenly by devices={recipe.devices} x "
            f"nodes={recipe.nodes} in accumulate={recipe.accumulate} pieces each; give a multiple of their product"
        )
    if recipe.sizes is not None:
        recipe = for_several_sizes(recipe, patch)
    mean, std = _normalization(recipe, images, start)
    steps = recipe.steps
    if steps is None:
        steps = max(1, round(epochs * len(images) / batch))
    often, starts = max(1, steps // 10), starting.is_started(recipe)
    _check_frozen(recipe, steps)
    given = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    resolved = {
        "image_size": size,
        "patch_size": patch,
        "channels": images.channels,
        "mean": mean,
        "std": std,
        "steps": steps,
        "batch_size": batch,
        "minutes": None,
        "epochs": epochs if source.is_stream else passes(steps, batch, len(images)),
        "held_out": source.held_out_share,
    }
    defaults: dict[str, Any] = {
        "crop_scale": method.crop_scale,
        "crop_mode": "squash" if method.codes == "colors" else "center",
        "flip": method.flip and recipe.data not in PACKAGED,
        "layer_decay": starting.STARTED_LAYER_DECAY if starts else 1.0,
        "freeze_first": 0,  # `runs.starting.with_frozen_first` knows more, once the weights are loaded
        "ema": starting.STARTED_EMA if starts else 0.0,
        "betas": method.betas,
        "weight_decay": method.weight_decay,
        "clip": method.clip or 0.0,
        "precision": default_precision(recipe.device),
        "workers": default_workers(recipe.device),
        "eval_every": often,
        "readout": DEFAULT_READOUT,
        "attention": "fused",
        "checkpoint_every": often,
    }
    completed = {name: default if given[name] in (None, "auto") else given[name] for name, default in defaults.items()}
    whole = Resolved(**{**given, **resolved, **completed})
    whole.check()  # again: the number of steps follows from epochs
    return whole, chosen


def passes(steps: int, batch: int, images: int) -> float:
    """Passes over the images, in hundredths; fewer in two digits.

    >>> passes(100, 64, 1437), passes(2, 1, 1437)
    (4.45, 0.0014)
    """
    exact = steps * batch / images
    return round(exact, 2) or float(f"{exact:.2g}")


def _normalization(recipe: Recipe, images: Images, start: Start | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: given, those of the weights to start from, or measured."""
    mean, std = recipe.mean, recipe.std
    if mean is None and std is None and (start is not None or timm_loads(recipe)):
        mean, std = started_normalization(recipe, start, images) or (None, None)
    if mean is None or std is None:
        with stage("Measuring mean and standard deviation of the images"):
            measured = channel_statistics(images)
        mean, std = mean or measured[0], std or measured[1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.channels):
            raise ValueError(f"{name} has {len(values)} numbers, and the images have {images.channels} channels")
    mean, std = (values * images.channels if len(values) == 1 else values for values in (mean, std))
    # Four significant digits: 12 bits in a 16-bit file have deviations of a few thousandths of white.
    return tuple(float(f"{value:.4g}") for value in mean), tuple(float(f"{value:.4g}") for value in std)


def _check_frozen(recipe: Recipe, steps: int) -> None:
    if recipe.freeze_first is not None and recipe.freeze_first >= steps:
        raise ValueError(f"freeze_first={recipe.freeze_first} freezes the backbone in all {steps} steps; give fewer")


def _check_stream(recipe: Recipe, method: Method) -> None:
    if recipe.steps is None:
        raise ValueError(f"{recipe.data} is a stream of unknown length: give --steps")
    if method.codes == "colors":
        raise ValueError(f"{recipe.method} encodes all images before training, which a stream does not allow: use hf:")


def build(
    recipe: Resolved, method: Method, tokenizer: Tokenizer | None = None, teacher: Target | None = None
) -> Pretrainer:
    """The method over its backbone, with random weights of a resolved recipe's seed.

    Args:
        tokenizer: of methods that predict codes; see `patchcast.runs.tokenizer`.
        teacher: of methods that predict another network's features; see `patchcast.runs.teachers`.
    Raises:
        ValueError: if the sizes do not fit, or the backbone cannot do what the method needs.
    """
    return build_started(recipe, method, tokenizer, None, teacher)[0]


def build_started(
    recipe: Resolved,
    method: Method,
    tokenizer: Tokenizer | None,
    start: Start | None,
    teacher: Target | None = None,
) -> tuple[Pretrainer, StartReport | None]:
    """The method over its backbone, with the weights of a start where there is one, and what became of them.

    What the start does not have gets the initial weights of the recipe's seed.

    Raises:
        ValueError: if the sizes do not fit, or the backbone cannot do what the method needs.
    """
    torch.manual_seed(recipe.seed)
    given: dict[str, Any] = {}
    backbone: Backbone
    if method.codes == "colors":
        assert tokenizer is not None
        backbone = imagegpt_backbone(recipe, tokenizer, causal=method.causal)
    else:
        with building(f"{recipe.model} with these model_args"):
            backbone = wrap(recipe.model, pretrained=recipe.pretrained and timm_loads(recipe), **timm_args(recipe))
        if recipe.tile_size is not None:
            tile = (recipe.tile_size, recipe.tile_size)
            backbone = Tiled(backbone, tiles_of(recipe.image_size, tile))
        backbone.grid(recipe.image_size)
        if not timm_loads(recipe):
            start_from_sincos(backbone)
        given |= {"steps": recipe.steps} if method.takes_steps else {}
    # Before the method is built: its teacher is a copy of the backbone.
    fitted = None if start is None else fit(backbone, start, bands=recipe.start_bands)
    if method.codes == "patches":
        assert tokenizer is not None
        given["tokenizer"] = of_units(tokenizer, backbone)
    if teacher is not None:
        given["teacher"] = teacher
    with building(f"{recipe.method} with these method_args"):
        pretrainer = method.build(backbone, **{**given, **_with_parts(method, recipe.method_args)})
    if recipe.optimizer == "muon" and not block_matrices(backbone):
        raise ValueError(
            f"Muon moves the matrices of linear layers in blocks, and patchcast knows none in {backbone.name}: give "
            "optimizer adamw, or leave it out"
        )
    if start is not None and fitted is not None:
        fit_parts(pretrainer, start, recipe.method, fitted)
    if recipe.sizes is not None:
        _prepare(pretrainer, recipe)
    return pretrainer, fitted


def _prepare(pretrainer: Pretrainer, recipe: Resolved) -> None:
    """Check that plans can be drawn for the smaller sizes, and cache positions for them."""
    for _, size in recipe.phases():
        grid = pretrainer.backbone.grid(size)
        try:
            pretrainer.plan(grid, 1, torch.Generator())
        except ValueError as problem:
            raise ValueError(f"images of {size[0]}x{size[1]}, one of sizes, are too small: {problem}") from problem
        for module in pretrainer.modules():
            if isinstance(module, Positions):
                module.add(grid)


def augmentation(recipe: Resolved, size: tuple[int, int] | None = None) -> Augment:
    """The augmentation of training, at the network's size or another one."""
    return Augment(size or recipe.image_size, recipe.crop_scale, bool(recipe.flip), recipe.mean, recipe.std)


def evaluation(recipe: Resolved) -> Evaluate:
    """The deterministic preprocessing of probes and pictures."""
    return Evaluate(recipe.image_size, recipe.mean, recipe.std, squash=recipe.crop_mode == "squash")


def _size_and_patch(recipe: Recipe, method: Method, images: Images) -> tuple[tuple[int, int], int | None]:
    """Height and width, and pixels per side of a patch; None for the model's own."""
    if method.codes == "colors":
        assert recipe.image_size is not None  # set by `with_codes`
        return recipe.image_size, None
    if recipe.tile_size is None:
        if recipe.image_size is not None:
            check_units(recipe, recipe.image_size, recipe.patch_size)
        return size_and_patch(recipe, images.typical_size)
    check_units(recipe, (recipe.tile_size, recipe.tile_size), recipe.patch_size)
    size = recipe.image_size or _whole_tiles(images.typical_size, recipe.tile_size)
    return size, patch_for_tile(recipe, recipe.tile_size)


def _whole_tiles(typical: tuple[int, int], tile: int) -> tuple[int, int]:
    """The data's size, rounded to whole tiles."""
    return max(1, round(typical[0] / tile)) * tile, max(1, round(typical[1] / tile)) * tile


def _check_options(name: str, method: Method, options: dict[str, Any]) -> None:
    defaults = {
        each: parameter.default
        for each, parameter in inspect.signature(method.build).parameters.items()
        if each not in ("backbone", "tokenizer", "teacher")
    }
    for option, value in options.items():
        if option not in defaults:
            raise ValueError(f"{name} has no option {option!r}; it has {', '.join(defaults)}")
        if defaults[option] is None and value is not None and not (type(value) is int and value >= 1):
            raise ValueError(f"{name}'s {option} is a whole number, 1 or more; got {value!r}")
        kind = type(defaults[option])
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        if kind in TYPE_NAMES and (not fits or isinstance(value, bool) != (kind is bool)):
            raise ValueError(f"{name}'s {option} is {TYPE_NAMES[kind]}; got {value!r}")
    _with_parts(method, options)


def _with_parts(method: Method, options: dict[str, Any]) -> dict[str, Any]:
    """The options with names replaced by the objects they stand for."""
    for option, named in method.named.items():
        if option in options and options[option] not in named:
            raise ValueError(f"{option} is one of {', '.join(named)}; got {options[option]!r}")
    return {option: method.named.get(option, {}).get(value, value) for option, value in options.items()}
