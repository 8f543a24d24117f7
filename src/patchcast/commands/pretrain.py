"""`patchcast pretrain`."""

from __future__ import annotations

import errno
import json
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch.utils.data import DataLoader

from patchcast.commands.build import augmentation, build, evaluation, resolve
from patchcast.commands.export import write_encoder
from patchcast.commands.folder import claim, save_weights
from patchcast.commands.show import picture
from patchcast.data import EvalSet, Images, TrainSet, open_images
from patchcast.pictures import draw_loss
from patchcast.recipe import Recipe, Resolved
from patchcast.training.log import curve
from patchcast.training.optimization import Optimization
from patchcast.training.run import Engine, Stream, train

HELD_OUT = 2000
"""Most images on which the loss is evaluated during a run."""


def pretrain(recipe: Recipe) -> Resolved:
    """Carry out a recipe, or go on with it; returns it with nothing left open.

    Raises:
        ValueError: for anything that the user can put right, in one sentence, before training starts.
    """
    console = Console()
    images = open_images(recipe.data, channels=recipe.channels)
    resolved = resolve(recipe, images)
    pretrainer = build(resolved)
    goes_on = claim(resolved)
    console.print(_summary(resolved, images, pretrainer))
    if goes_on:
        console.print(f"Going on with the run in {resolved.out}.")
    try:
        _train(resolved, images, pretrainer)
        save_weights(pretrainer, resolved.out)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"the disk of {resolved.out} is full; make room, and the same command goes on from the last checkpoint"
        ) from problem
    _finish(resolved, images, pretrainer)
    console.print(
        f"\nDone. {resolved.out} holds the weights for timm (model.safetensors, config.json), the pictures\n"
        "reconstructions.png and loss.png, metrics.csv, and config.yaml, which runs this again.\n"
        f"Next: [bold]patchcast probe {resolved.out}[/]"
    )
    return resolved


def _train(recipe: Resolved, images: Images, pretrainer: Any) -> None:
    stream = Stream(
        TrainSet(images, augmentation(recipe), recipe.seed),
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        seed=recipe.seed,
        workers=recipe.workers,
    )
    train(
        pretrainer,
        stream,
        held_out_loader(recipe, images),
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
        ),
        out=recipe.out,
        title=recipe.method,
        extra_loggers=_loggers(recipe),
    )


def held_out_loader(recipe: Resolved, images: Images) -> DataLoader[Any] | None:
    """Up to 2,000 images of the test or validation split, evenly spread; None if the source has no other split."""
    splits = [each for each in ("validation", "val", "test") if each in images.splits]
    if not splits:
        return None
    held_out = EvalSet(open_images(recipe.data, split=splits[0], channels=recipe.channels), evaluation(recipe))
    spread = torch.linspace(0, len(held_out) - 1, min(HELD_OUT, len(held_out))).long().tolist()
    return DataLoader(torch.utils.data.Subset(held_out, spread), batch_size=recipe.batch_size)


def _loggers(recipe: Resolved) -> list[Logger]:
    if not recipe.tensorboard:
        return []
    from lightning.pytorch.loggers import TensorBoardLogger

    return [TensorBoardLogger(recipe.out, name="", version="tensorboard")]


def _summary(recipe: Resolved, images: Images, pretrainer: Any) -> str:
    backbone = pretrainer.backbone
    grid = backbone.grid(recipe.image_size)
    millions = sum(each.numel() for each in pretrainer.parameters() if each.requires_grad) / 1e6
    height, width = recipe.image_size
    down, right = backbone.stride
    tiles = f" in tiles of {recipe.tile_size}x{recipe.tile_size}" if recipe.tile_size else ""
    return (
        f"[bold]{recipe.method}[/] on [bold]{recipe.model}[/]: {len(images):,} images of {recipe.data}, "
        f"{recipe.channels} x {height} x {width}, as {grid} units of {down}x{right} pixels{tiles}; "
        f"{millions:.1f} M parameters; {recipe.steps:,} steps of {recipe.batch_size} ({recipe.epochs:g} epochs), "
        f"lr {recipe.lr:.3g}, {recipe.precision}"
    )


def _finish(recipe: Resolved, images: Images, pretrainer: Any) -> None:
    """What a run leaves behind beside its weights."""
    out = recipe.out
    write_encoder(recipe, pretrainer.backbone, out)
    split = "test" if "test" in images.splits else images.split
    picture(recipe, pretrainer, open_images(recipe.data, split=split, channels=recipe.channels), count=8).savefig(
        out / "reconstructions.png", dpi=120
    )
    steps, losses = curve(out / "metrics.csv", "loss")
    held_steps, held = curve(out / "metrics.csv", "eval_loss")
    draw_loss((steps, losses), (held_steps, held), title=f"{recipe.method} on {recipe.data}").savefig(
        out / "loss.png", dpi=120
    )
    summary = {"steps": recipe.steps, "loss": losses[-1] if losses else None, "eval_loss": held[-1] if held else None}
    unreadable = [f"{each.path}: {each.reason}" for each in images.unreadable]
    (out / "metrics.json").write_text(json.dumps({**summary, "unreadable_images": unreadable}, indent=2) + "\n")
