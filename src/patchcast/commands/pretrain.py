"""`patchcast pretrain`."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from functools import partial
from typing import Any

from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch.utils.data import DataLoader, Subset

from patchcast.commands.export import exported_as, is_exported, write_encoder
from patchcast.commands.sample import write_samples
from patchcast.commands.show import picture
from patchcast.data import Cutter, EvalSet, Images, Journal, StreamSet, TrainSet, finish, open_images
from patchcast.data.images import evenly_spaced
from patchcast.data.streamed import HeadStore
from patchcast.drawing.figures import draw_loss
from patchcast.evaluation.ngrams import bits_per_pixel
from patchcast.methods import METHODS, on_codes
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import augmentation, build, evaluation, resolve
from patchcast.runs.run_folder import BAD_IMAGES, as_begun, claim, open_run, save_weights
from patchcast.runs.tokenizer import CodeData, encode, find_tokenizer, keep_tokenizer, kept_tokenizer
from patchcast.runs.watch import check_loggers, make_loggers, watches
from patchcast.training.log import curve
from patchcast.training.loggers import closing
from patchcast.training.optimization import Optimization
from patchcast.training.run import Engine, Stream, train, uses_cuda
from patchcast.training.sharding import whole_state

HELD_OUT = 2000
"""Most images on which the loss is evaluated during a run."""
SAMPLES = 16
"""Images that an ImageGPT draws at the end of its run."""


def pretrain(recipe: Recipe) -> Resolved:
    """Carry out a recipe, or go on with it; returns it with nothing left open.

    Raises:
        ValueError: for anything that the user can put right, in one sentence, before training starts.
    """
    # Of the processes of all devices; the others only train.
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    console = Console(quiet=not is_first)
    images = open_images(recipe.data, channels=recipe.channels)
    resolved = resolve(as_begun(recipe), images)
    check_loggers(resolved)
    tokenizer = kept_tokenizer(resolved.out) or find_tokenizer(resolved, images)
    pretrainer = build(resolved, tokenizer)
    looks = watches(resolved, pretrainer, images)
    if is_first:
        goes_on = claim(resolved)
        keep_tokenizer(tokenizer, resolved.out)
        console.print(_summary(resolved, images, pretrainer))
        if goes_on:
            console.print(f"Going on with the run in {resolved.out}.")
    journal = Journal(resolved.out / BAD_IMAGES)
    trained, train_set, judged, codes = _feed(resolved, images, pretrainer, tokenizer, journal)
    if codes is not None:
        console.print(f"{codes}")
    try:
        _train(resolved, trained, train_set, judged, looks)
        state = whole_state(pretrainer)
        if not is_first:
            return resolved
        save_weights(state, resolved.out)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"the disk of {resolved.out} is full; make room, and the same command goes on from the last checkpoint"
        ) from problem
    _, pretrainer = open_run(resolved.out)  # whole, on the CPU, and as it will be found
    bad = journal.close()
    reached = _finish(resolved, images, pretrainer, codes, bad)
    if bad:
        what = "1 image" if len(bad) == 1 else f"{len(bad):,} images"
        console.print(f"\n{what} could not be read, and others stood in: {journal.file} lists them.")
    console.print(
        f"\nDone. {reached} {resolved.out} holds {exported_as(resolved)}, pictures (*.png),\n"
        "metrics.csv, and config.yaml, which runs this again.\n"
        f"Next: [bold]patchcast probe {resolved.out}[/]"
    )
    return resolved


Fed = tuple[Pretrainer, TrainSet | StreamSet, DataLoader[Any] | None, CodeData | None]


def _feed(recipe: Resolved, images: Images, pretrainer: Pretrainer, tokenizer: Any, journal: Journal) -> Fed:
    """What is trained, and on what: augmented images, or codes of their colours made once."""
    found = held_out(recipe, images)
    images.write_down(journal)
    if found is not None:
        found[0].write_down(journal)
    if METHODS[recipe.method].codes == "colours":
        codes = encode(recipe, tokenizer, images, None if found is None else Subset(*found))
        return on_codes(pretrainer), codes.train, codes.held_out, codes
    judged = None if found is None else Subset(EvalSet(found[0], evaluation(recipe)), found[1])
    loader = None if judged is None else DataLoader(judged, batch_size=recipe.batch_size)
    augment: Any = Cutter(augmentation(recipe)) if uses_cuda(recipe.device) else augmentation(recipe)
    if isinstance(images.store, HeadStore):
        stream = StreamSet(images.store.stream, images.channels, augment, recipe.seed)
        stream.write_down(journal)
        return pretrainer, stream, loader, None
    return pretrainer, TrainSet(images, augment, recipe.seed), loader, None


def _train(
    recipe: Resolved,
    pretrainer: Pretrainer,
    train_set: TrainSet | StreamSet,
    judged: DataLoader[Any] | None,
    callbacks: list[Callback],
) -> None:
    stream = Stream(
        train_set,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        seed=recipe.seed,
        workers=recipe.workers,
        accumulate=recipe.accumulate,
    )
    with closing(make_loggers(recipe)) as loggers:
        train(
            pretrainer,
            stream,
            judged,
            optimization=Optimization(
                lr=recipe.lr,
                betas=recipe.betas,
                weight_decay=recipe.weight_decay,
                warmup=recipe.warmup,
                clip=recipe.clip or None,
            ),
            engine=Engine(
                precision=recipe.precision,
                device=recipe.device,
                log_every=recipe.log_every,
                eval_every=recipe.eval_every,
                checkpoint_every=recipe.checkpoint_every,
                devices=recipe.devices,
                nodes=recipe.nodes,
                sharded=recipe.sharded,
                compiled=recipe.compile,
                checkpointing=recipe.checkpointing,
            ),
            out=recipe.out,
            title=recipe.method,
            extra_loggers=loggers,
            extra_callbacks=callbacks,
            finish=partial(finish, augmentation(recipe)),
        )


def held_out(recipe: Resolved, images: Images) -> tuple[Images, list[int]] | None:
    """The test or validation split and up to 2,000 places in it, evenly spread; None if there is no such split."""
    splits = [each for each in ("validation", "val", "test") if each in images.splits]
    if not splits:
        return None
    other = open_images(recipe.data, split=splits[0], channels=recipe.channels)
    return other, evenly_spaced(len(other), HELD_OUT)


def _summary(recipe: Resolved, images: Images, pretrainer: Any) -> str:
    backbone = pretrainer.backbone
    grid = backbone.grid(recipe.image_size)
    millions = sum(each.numel() for each in pretrainer.parameters() if each.requires_grad) / 1e6
    height, width = recipe.image_size
    down, right = backbone.stride
    tiles = f" in tiles of {recipe.tile_size}x{recipe.tile_size}" if recipe.tile_size else ""
    count = "a stream" if isinstance(images.store, HeadStore) else f"{len(images):,} images"
    return (
        f"[bold]{recipe.method}[/] on [bold]{recipe.model}[/]: {count} of {recipe.data}, "
        f"{recipe.channels} x {height} x {width}, as {grid} units of {down}x{right} pixels{tiles}; "
        f"{millions:.1f} M parameters; {recipe.steps:,} steps of {recipe.batch_size} ({recipe.epochs:g} epochs), "
        f"lr {recipe.lr:.3g}, {recipe.precision}"
    )


def _finish(
    recipe: Resolved, images: Images, pretrainer: Pretrainer, codes: CodeData | None, bad: dict[str, str]
) -> str:
    """What a run leaves behind beside its weights; and what it has reached, in words."""
    out = recipe.out
    if is_exported(recipe):
        write_encoder(recipe, pretrainer, out)
    if pretrainer.target.is_drawn:
        split = "test" if "test" in images.splits else images.split
        source = open_images(recipe.data, split=split, channels=recipe.channels)
        name = "completions.png" if METHODS[recipe.method].causal else "reconstructions.png"
        picture(recipe, pretrainer, source, count=8).savefig(out / name, dpi=120)
    if METHODS[recipe.method].causal:
        write_samples(pretrainer, out / "samples.png", count=SAMPLES)
    steps, losses = curve(out / "metrics.csv", "loss")
    held_steps, held = curve(out / "metrics.csv", "eval_loss")
    draw_loss((steps, losses), (held_steps, held), title=f"{recipe.method} on {recipe.data}").savefig(
        out / "loss.png", dpi=120
    )
    summary = {"steps": recipe.steps, "loss": losses[-1] if losses else None, "eval_loss": held[-1] if held else None}
    in_units, reached = _in_units(recipe, (held or losses or [float("nan")])[-1], codes)
    unreadable = [f"{name}: {reason}" for name, reason in bad.items()]
    found = {**summary, **in_units, "unreadable_images": unreadable}
    (out / "metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    return reached


def _in_units(recipe: Resolved, loss: float, codes: CodeData | None) -> tuple[dict[str, Any], str]:
    """A loss on codes beside its floors, for metrics.json and in words; nothing for losses that have no unit."""
    if codes is None:
        return {}, ""
    psnr = codes.psnr if math.isfinite(codes.psnr) else None  # JSON has no infinity
    found: dict[str, Any] = {
        "unit": "nats per code", "floors": dataclasses.asdict(codes.floors), "palette_psnr_db": psnr
    }  # fmt: skip
    told = f"The loss is {loss:.3f} nats per code ({codes.floors} by counting)."
    if METHODS[recipe.method].causal:
        found["bits_per_pixel"] = bits_per_pixel(loss)
        told = f"{told[:-1]}, {found['bits_per_pixel']:.3f} bits per pixel of the quantised image."
    return found, told
