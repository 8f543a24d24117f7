"""What a run will do, in words, before it begins."""

from __future__ import annotations

from itertools import pairwise

from patchcast.data.names import escape
from patchcast.recipe import Resolved
from patchcast.runs.run import Run
from patchcast.runs.starting import is_started


def run_summary(run: Run) -> str:
    """Method, model, images, sizes and training in a few lines, as markup."""
    recipe, backbone, source = run.recipe, run.pretrainer.backbone, run.source
    grid = backbone.grid(recipe.image_size)
    count_of = sum(weight.numel() for weight in run.pretrainer.parameters() if weight.requires_grad)
    parameters = f"{count_of / 1e6:.1f} M" if count_of >= 1e5 else f"{count_of:,}"
    height, width = recipe.image_size
    down, right = backbone.stride
    tiles = f" in tiles of {recipe.tile_size}x{recipe.tile_size}" if recipe.tile_size else ""
    count = "a stream" if source.is_stream else f"{len(source.train):,} images"
    held_out, typical = source.held_out, source.train.typical_size
    resized = "" if typical == recipe.image_size else f", from about {typical[0]} x {typical[1]}"
    evaluated = "none held out" if held_out is None else f"evaluated on {len(held_out.images):,} {held_out.phrase}"
    going_on = f"\n  start     {_going_on(recipe)}" if is_started(recipe) else ""
    return (
        f"[bold]{recipe.method}[/] on [bold]{escape(recipe.model)}[/], {parameters} parameters\n"
        f"  images    {count} of {escape(recipe.data)}, {evaluated}\n"
        f"  size      {recipe.channels} x {height} x {width}{resized}; {grid} units of {down}x{right} pixels{tiles}"
        f"{_smaller(recipe)}\n"
        f"  training  {recipe.steps:,} steps of {recipe.batch_size} images ({recipe.epochs:g} epochs), "
        f"lr {recipe.lr:.3g}, {recipe.precision}{going_on}"
    )


def _smaller(recipe: Resolved) -> str:
    """What sizes come before, if there are several."""
    phases = recipe.phases()
    before = [f"{size[0]}x{size[1]} up to step {end:,}" for (_, size), (end, _) in pairwise(phases)]
    return f"; before, {', '.join(before)}" if before else ""


def _going_on(recipe: Resolved) -> str:
    words = [f"layer decay {recipe.layer_decay:g}"]
    words += [f"backbone frozen for {recipe.freeze_first:,} steps"] * bool(recipe.freeze_first)
    words += [f"first {recipe.freeze_blocks} blocks frozen"] * bool(recipe.freeze_blocks)
    words += [f"averaged weights (EMA {recipe.ema:g})"] * bool(recipe.ema)
    return escape(f"{recipe.start_words or 'weights'}; {', '.join(words)}")


def too_few(run: Run) -> str:
    """A sentence if a batch is larger than the data; empty otherwise."""
    batch, count = run.recipe.batch_size, len(run.source.train)
    if run.source.is_stream or batch <= count:
        return ""
    often = f"{batch / count:.1f} times"
    return f"A batch of {batch:,} holds each of the {count:,} images {often}: try --batch_size {count}."
