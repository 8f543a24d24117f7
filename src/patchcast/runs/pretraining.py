"""From a run and what it trains on to its weights."""

from __future__ import annotations

import errno
from functools import partial

from patchcast.data import finish
from patchcast.honesty import blind_loss
from patchcast.recipe import Resolved
from patchcast.runs.build import augmentation
from patchcast.runs.feed import Feed
from patchcast.runs.forecast import memory_in_words
from patchcast.runs.results import better_average, held_out_images
from patchcast.runs.run import Run
from patchcast.runs.run_folder import save_weights
from patchcast.runs.speed import use_attention
from patchcast.runs.watch import make_loggers
from patchcast.training.engine import Engine, reads_ahead
from patchcast.training.log import closing
from patchcast.training.looks import Look
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization, freeze_blocks
from patchcast.training.sharding import whole_state
from patchcast.training.stream import Stream

BLIND = 64
"""Maximum number of images for the loss of a blind prediction."""
BLIND_VALUES = 2**24
"""Maximum number of values of these images: large ones would fill the memory."""


def blind_of(run: Run, feed: Feed) -> float | None:
    """The loss of a blind prediction on some of the images that pictures show; None if there is none.

    Of codes it is the loss of counting.
    """
    if feed.codes is not None:
        return feed.codes.floors.unigram
    values = run.recipe.channels * run.recipe.image_size[0] * run.recipe.image_size[1]
    images, _ = held_out_images(run, max(1, min(BLIND, BLIND_VALUES // values)))
    return blind_loss(run.pretrainer, images)


def train_run(run: Run, feed: Feed, looks: list[Look], blind: float | None, *, saves: bool) -> float:
    """Train from the last checkpoint on, and save the weights; returns the share of time that waited for images.

    Args:
        looks: what looks at the network at every evaluation.
        blind: the loss of a blind prediction, for the progress line.
        saves: False for processes other than the first, which only train.
    Raises:
        ValueError: if the disk is full, or the memory too small.
    """
    try:
        use_attention(run.pretrainer, run.recipe.attention)
        if run.recipe.freeze_blocks:
            freeze_blocks(run.pretrainer.backbone, run.recipe.freeze_blocks)
        with memory_in_words(run.recipe):
            waited = _train(run.recipe, feed, looks, blind)
        state = whole_state(run.pretrainer)
        if saves:
            save_weights(state | better_average(run.folder), run.folder)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"the disk of {run.folder} is full; make room, and the same command resumes from the last checkpoint"
        ) from problem
    return waited


def _train(recipe: Resolved, feed: Feed, looks: list[Look], blind: float | None) -> float:
    (_, train_set), *later = feed.phases
    stream = Stream(
        train_set,
        later=later,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        seed=recipe.seed,
        workers=recipe.workers,
        accumulate=recipe.accumulate,
        ahead=reads_ahead(recipe.device, recipe.workers),
        move=feed.move,
    )
    with closing(make_loggers(recipe)) as loggers:
        return train(
            feed.pretrainer,
            stream,
            feed.held_out,
            optimization=Optimization(
                lr=recipe.lr,
                optimizer=recipe.optimizer,
                betas=recipe.betas,
                weight_decay=recipe.weight_decay,
                warmup=recipe.warmup,
                clip=recipe.clip or None,
                layer_decay=recipe.layer_decay,
                freeze_first=recipe.freeze_first,
                ema=recipe.ema or None,
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
            loggers=loggers,
            looks=looks,
            finish=partial(finish, augmentation(recipe)),
            blind=blind,
        )
