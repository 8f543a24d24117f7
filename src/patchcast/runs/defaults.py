"""Defaults by one rule: batch, passes, rate and decoder follow from the images, the model and the method.

The rule was fitted on two kinds of points: the papers' settings (ViT-B and larger, batches of 2,048 and 4,096), and
what was measured here (`benchmarks/NOTES.md`: ViTs of width 192 on thousands of images, batches of 32 to 128). Configs
of runs hold all values, so that a change of the rule changes no run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from patchcast.methods import Method
from patchcast.recipe import Recipe
from patchcast.runs.codes import network_args
from patchcast.runs.sizes import nominal_backbone
from patchcast.runs.starting import KINDS, STARTED_LR, is_started
from patchcast.targets import even_blocks
from patchcast.training.optimization import block_matrices

WARMUP = 0.05
"""Share of the steps: MAE's 40 of 800 epochs."""
SMALLEST_BATCH, STREAM_BATCH, LARGEST_BATCH = 32, 256, 2048
MOST_IMAGES, UNITS, LEAST_PIXELS = 100_000, (49, 256), 16
"""Up to this number of images, with a number of units in this range, methods take the options that were best here;
otherwise the papers'. Fewer units are learned better by attention, and of more some are beyond the reach of kernels. If
these options normalize pixels, units have at least this number of pixels: of fewer there is too little to normalize."""
FEWEST_STEPS, EPOCHS, MOST_EPOCHS = 10_000, 100, 800


class Chosen(NamedTuple):
    """The value of an option that a recipe leaves out, and why it is this."""

    value: Any
    reason: str


def choose_defaults(
    recipe: Recipe, method: Method, images: int | None, units: int | None = None, pixels: int | None = None
) -> dict[str, Chosen]:
    """The options that a recipe leaves out among those that the rule sets: batch_size, epochs, lr, optimizer, warmup
    and method_args.

    Args:
        images: to train on; None for a stream, whose number is unknown.
        units: of an image; None if their number is unknown.
        pixels: of a unit; None likewise.
    Raises:
        ValueError: if the model cannot be built.
    """
    has_few = images is not None and images <= MOST_IMAGES
    has_usual = units is None or UNITS[0] <= units <= UNITS[1]
    is_like_measured = has_few and has_usual and not is_started(recipe) and not _has_added_teacher(recipe, method)
    normalizes = not {"normalize", "pixel_weight"}.isdisjoint(method.few)
    can_normalize = not normalizes or pixels is None or pixels >= LEAST_PIXELS
    takes_few = is_like_measured and can_normalize and _takes_kernels(recipe)
    return dict(_choices(recipe, method, images, is_like_measured=is_like_measured, takes_few=takes_few))


def filled(recipe: Recipe, chosen: dict[str, Chosen]) -> Recipe:
    """The recipe with the chosen values where it leaves them out."""
    values = {name: choice.value for name, choice in chosen.items()}
    values["method_args"] = {**recipe.method_args, **values.get("method_args", {})}
    return dataclasses.replace(recipe, **values)


BEST_HERE = f"as was best here for at most {MOST_IMAGES:,} images of {UNITS[0]} to {UNITS[1]} units"
UNUSED = "not used: steps or minutes are given"


def in_words(chosen: dict[str, Chosen]) -> str:
    """What was chosen and why, a line each.

    >>> print(in_words({"lr": Chosen(0.001, "measured"), "method_args": Chosen({"head_depth": 2}, "for 4 blocks")}))
      lr 0.001: measured
      head_depth 2: for 4 blocks
    """
    lines = []
    for name, (value, reason) in chosen.items():
        if reason == UNUSED:
            continue
        shown = value if isinstance(value, dict) else {name: value}
        lines.append(f"  {', '.join(f'{option} {one}' for option, one in shown.items())}: {reason}")
    return "\n".join(lines)


def _choices(
    recipe: Recipe, method: Method, images: int | None, *, is_like_measured: bool, takes_few: bool
) -> Iterator[tuple[str, Chosen]]:
    batch = recipe.given_batch
    if batch is None:
        batch, reason = _batch(images, recipe.devices * recipe.nodes * recipe.accumulate)
        yield "batch_size", Chosen(batch, reason)
    if (recipe.steps, recipe.epochs, recipe.minutes) == (None, None, None) and images is not None:
        epochs = min(MOST_EPOCHS, max(EPOCHS, math.ceil(FEWEST_STEPS * batch / images)))
        yield (
            "epochs",
            Chosen(float(epochs), f"{EPOCHS}, or more for {FEWEST_STEPS:,} steps, up to {MOST_EPOCHS}"),
        )
    elif recipe.epochs is None:
        yield "epochs", Chosen(float(EPOCHS), UNUSED)
    if recipe.warmup is None:
        yield "warmup", Chosen(WARMUP, "MAE's")
    width, blocks = _size(recipe, method)
    if recipe.lr is None:
        rate, reason = _rate(method, batch, width)
        if is_started(recipe):
            rate, reason = STARTED_LR * rate, f"{reason}, and {STARTED_LR:g} of that, to keep what the weights know"
        yield "lr", Chosen(rate, reason)
    if recipe.optimizer is None:
        yield "optimizer", _optimizer(recipe, method, is_like_measured=is_like_measured)
    sizes = method.sizes(width, blocks) if method.sizes is not None and blocks else {}
    reason = f"for a model of {blocks} blocks of width {width}"
    if method.few and takes_few:
        sizes, reason = {**sizes, **method.few}, f"{reason}, {BEST_HERE}" if sizes else BEST_HERE
    if missing := {name: value for name, value in sizes.items() if name not in recipe.method_args}:
        yield "method_args", Chosen(missing, reason)


def _optimizer(recipe: Recipe, method: Method, *, is_like_measured: bool) -> Chosen:
    """Muon trains the backbone, whatever predicts: it does not depend on the options of the method."""
    if method.few_optimizer == "adamw" or not is_like_measured:
        return Chosen("adamw", "as in the papers")
    if recipe.sharded:
        return Chosen("adamw", "as Muon needs whole matrices, and they are sharded")
    if not block_matrices(nominal_backbone(recipe)):
        return Chosen("adamw", "as no blocks with linear layers are known in this model, for Muon")
    return Chosen(method.few_optimizer, BEST_HERE)


def _has_added_teacher(recipe: Recipe, method: Method) -> bool:
    """Such as features next to pixels in MAE: Muon gained nothing there, and convolutions were not tried."""
    return recipe.teacher is not None and method.teacher != "required"


def _takes_kernels(recipe: Recipe) -> bool:
    """Whether the options of a method for few images are for this recipe.

    A decoder of convolutions reads neither the class token nor registers, and its kernels do not reach over large
    squares of hidden units.
    """
    args = recipe.method_args
    asked = "mask_cell" in args or any(name in args and not _is_kernel(name, args) for name in KINDS)
    return not asked and recipe.readout != "class" and "reg_tokens" not in recipe.model_args


def _is_kernel(name: str, args: Mapping[str, Any]) -> bool:
    """Whether it is the size of a kernel: with another kernel the rest of the rule holds."""
    return name.endswith("kernel") and args[name] is not None


def _batch(images: int | None, pieces: int) -> tuple[int, str]:
    """About 1.5 times the root of the number of images, as a power of 2, in whole pieces."""
    batch, reason = STREAM_BATCH, "of a stream"
    if images is not None:
        wish = 2 ** round(math.log2(1.5 * math.sqrt(max(1, images))))
        batch, reason = min(LARGEST_BATCH, max(SMALLEST_BATCH, wish)), f"for {images:,} images"
    return -(-batch // pieces) * pieces, reason


def _rate(method: Method, batch: int, width: int) -> tuple[float, str]:
    """The paper's rate, by the root of the batch (Malladi et al. 2022, for Adam), and higher for narrower models."""
    paper = method.lr_per_256 * method.paper_batch / 256
    narrow = max(1.0, method.paper_width / width)
    rate = float(f"{min(method.highest_lr, paper * math.sqrt(batch / method.paper_batch) * narrow):.2g}")
    reason = f"the paper's {paper:.2g} for {method.paper_batch:,} images, by the root of the batch"
    reason += "" if narrow == 1 else f", and by {method.paper_width}/{width} for the width"
    return rate, reason + (f"; {rate:g} at most" if rate == method.highest_lr else "")


def _size(recipe: Recipe, method: Method) -> tuple[int, int]:
    """Width and number of blocks of the model; 0 blocks where they are not alike."""
    if method.codes == "colors":
        args = network_args(recipe)
        return args["width"], args["depth"]
    backbone = nominal_backbone(recipe)
    with contextlib.suppress(Exception), torch.device("meta"):  # whatever an architecture raises that is not built so
        return backbone.width, even_blocks(backbone)
    return backbone.width, 0
