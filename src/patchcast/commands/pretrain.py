"""`patchcast pretrain`."""

from __future__ import annotations

import errno
import shlex
import sys
import time
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.prompt import Confirm
from torch.utils.data import DataLoader

from patchcast.data import Cutter, EvalSet, Journal, StreamSet, TrainSet, finish
from patchcast.data.images import evenly_spaced
from patchcast.data.names import escape
from patchcast.data.packed import pack_images
from patchcast.data.sampling import Examples, Sampled
from patchcast.data.streamed import HeadStore
from patchcast.heap import keep_freed_memory
from patchcast.honesty import blind_loss
from patchcast.interop.export_formats import exported_as
from patchcast.methods import on_codes
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import augmentation
from patchcast.runs.defaults import in_words
from patchcast.runs.forecast import ASKS_FROM, Forecast, foresee, memory_in_words
from patchcast.runs.results import after_start, better_average, held_out_images, write_results
from patchcast.runs.run import Run, open_run, start_run
from patchcast.runs.run_folder import (
    BAD_IMAGES,
    claim,
    holds_run,
    note_overwriting,
    save_weights,
    without_second_overwriting,
)
from patchcast.runs.speed import use_attention
from patchcast.runs.starting import is_started, keep_report
from patchcast.runs.tokenizer import CodeData, encode, save_tokenizer
from patchcast.runs.watch import EVALUATED, check_loggers, make_loggers, watches
from patchcast.stages import stage
from patchcast.tokenizers.palette import Palette
from patchcast.training.ahead import Move, moved
from patchcast.training.engine import Engine, reads_ahead, uses_cuda
from patchcast.training.lock import locked
from patchcast.training.log import closing
from patchcast.training.looks import Look
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization, freeze_blocks
from patchcast.training.progress import duration
from patchcast.training.sharding import whole_state
from patchcast.training.stream import Stream

BLIND = 64
"""Maximum number of images for the loss of a blind prediction."""
BLIND_VALUES = 2**24
"""Maximum number of values of these images: large ones would fill the memory."""


def pretrain(recipe: Recipe, *, says_next: bool = True) -> Resolved:
    """Run or resume a recipe; returns it with a value for every option.

    Args:
        says_next: whether the last lines suggest a next command.

    Raises:
        ValueError: for anything that the user can fix, before training starts.
    """
    if not uses_cuda(recipe.device):
        keep_freed_memory()
    # In the first process; those of other devices only train.
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    console = Console(quiet=not is_first)
    given, recipe = recipe, without_second_overwriting(recipe)
    run = start_run(recipe)
    check_loggers(run.recipe)
    if run.recipe.packed is not None:
        if run.method.codes == "colors":
            raise ValueError(f"{run.recipe.method} trains on codes, which are cached already: leave out --packed")
        if run.source.is_stream:
            raise ValueError("a stream is read in order, so that it cannot be packed: leave out --packed")
    if run.recipe.decode == "gpu":
        _check_decode(run)
    forecast = None
    if run.recipe.overwrite or not holds_run(run.folder):
        with stage("Measuring the speed of a few steps"), memory_in_words(run.recipe):
            run, forecast = foresee(run, recipe)
    with stage("Reading the images that are looked at during the run"):
        looks = watches(run)
    if forecast is not None:
        _describe(run, console)
        _announce(forecast, console)
    resuming = claim(run.recipe) if is_first else ""
    with locked(run.folder) if is_first else nullcontext():
        if is_first:
            if recipe.overwrite:
                note_overwriting(given)
            save_tokenizer(run.tokenizer, run.folder)
            if run.teacher is not None:
                run.teacher.save(run.folder)
            if forecast is not None:
                forecast.save(run.folder)
            else:
                _describe(run, console)
            if run.fitted is not None:
                keep_report(run.fitted, run.folder)
                console.print("\n".join(map(escape, str(run.fitted).splitlines())), highlight=False)
        if given.overwrite and not recipe.overwrite:
            console.print(
                f"The run in {escape(run.folder)} was begun by this command and has not finished: nothing is thrown "
                "away. To begin again, delete the folder."
            )
        if resuming:
            console.print(escape(resuming), highlight=False)
        return _carry_out(run, looks, console, is_first=is_first, says_next=says_next)


def _check_decode(run: Run) -> None:
    """Raises:
    ValueError: if a GPU cannot decode the run's images.
    """
    reason = ""
    if not uses_cuda(run.recipe.device):
        reason = "needs a GPU of NVIDIA's that torch can use"
    elif run.source.is_stream:
        reason = "is for files, and a stream is decoded by its workers"
    elif run.recipe.packed is not None:
        reason = "is for files, and packed images are decoded already"
    elif run.method.codes == "colors":
        reason = f"is for pixels, and {run.recipe.method} trains on codes"
    elif find_spec("torchvision") is None:
        reason = "needs torchvision"
    if reason:
        raise ValueError(f"decode gpu {reason}: leave it out")


def dry_run(recipe: Recipe) -> Forecast:
    """Print what a recipe would take. No folder is made, and nothing is trained.

    Raises:
        ValueError: as `pretrain` does.
    """
    console = Console()
    if not uses_cuda(recipe.device):
        keep_freed_memory()
    run = start_run(recipe)
    with stage("Measuring the speed of a few steps"):
        run, forecast = foresee(run, recipe, in_full=True)
    _describe(run, console)
    if forecast.choice is not None:
        console.print(escape(str(forecast.choice)), highlight=False)
    console.print(forecast.table(run.recipe), highlight=False, markup=False)
    return forecast


def _describe(run: Run, console: Console) -> None:
    console.print(_summary(run), highlight=False)
    if sentence := too_few(run):
        console.print(sentence, highlight=False)
    if run.why:
        console.print(escape(run.why), highlight=False)
    if run.chosen:
        console.print(f"Chosen by rule, as nothing else was given:\n{in_words(run.chosen)}", highlight=False)


def _announce(forecast: Forecast, console: Console) -> None:
    """Say what a run will take; on a terminal, ask before one of more than an hour.

    Raises:
        KeyboardInterrupt: if the answer is no.
    """
    if forecast.choice is not None:
        console.print(escape(str(forecast.choice)), highlight=False)
    console.print(f"{forecast}", highlight=False)
    asks = (forecast.seconds or 0.0) > ASKS_FROM and console.is_terminal and sys.stdin.isatty()
    if asks and not Confirm.ask("Start?", console=console, default=True):
        raise KeyboardInterrupt("not started")


def _carry_out(run: Run, looks: list[Look], console: Console, *, is_first: bool, says_next: bool) -> Resolved:
    journal = Journal(run.folder / BAD_IMAGES)
    trained, phases, move, judged, codes = _feed(run, journal)
    if codes is not None:
        console.print(f"{codes}", highlight=False)
    blind = codes.floors.unigram if codes is not None else _blind(run)
    if blind is not None:
        console.print(f"A blind prediction, which ignores the image, has a loss of {blind:.2f}.", highlight=False)
    begun = time.perf_counter()
    try:
        use_attention(run.pretrainer, run.recipe.attention)
        if run.recipe.freeze_blocks:
            freeze_blocks(run.pretrainer.backbone, run.recipe.freeze_blocks)
        with memory_in_words(run.recipe):
            waited = _train(run.recipe, trained, phases, move, judged, looks, blind)
        state = whole_state(run.pretrainer)
        if not is_first:
            return run.recipe
        state |= better_average(run.folder)
        save_weights(state, run.folder)
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"the disk of {run.folder} is full; make room, and the same command resumes from the last checkpoint"
        ) from problem
    unreadable = journal.close()
    with stage("Drawing pictures and writing results"):
        run = open_run(run.folder, source=run.source)  # on the CPU, as every later command opens it
        loss = " ".join(filter(None, [*after_start(run), write_results(run, codes, unreadable, blind=blind)]))
    if unreadable:
        is_one = len(unreadable) == 1
        count = "1 image" if is_one else f"{len(unreadable):,} images"
        replaced = "was replaced by another" if is_one else "were replaced by others"
        console.print(f"\n{count} could not be read and {replaced}: {escape(journal.file)} lists them.")
    console.print(
        f"\nDone in {duration(time.perf_counter() - begun)}, {waited:.1%} of training waiting for images. {loss}\n"
        f"{escape(str(run.folder))} holds {exported_as(run.method)}, pictures (*.png), metrics.csv, and config.yaml, "
        "which runs this again.",
        highlight=False,
    )
    if says_next:
        console.print(_next(run), highlight=False)
    return run.recipe


def too_few(run: Run) -> str:
    """A sentence if a batch is larger than the data; empty otherwise."""
    batch, count = run.recipe.batch_size, len(run.source.train)
    if run.source.is_stream or batch <= count:
        return ""
    often = f"{batch / count:.1f} times"
    return f"A batch of {batch:,} holds each of the {count:,} images {often}: try --batch_size {count}."


def _blind(run: Run) -> float | None:
    """The loss of a blind prediction on some of the images that pictures show; None if there is none."""
    values = run.recipe.channels * run.recipe.image_size[0] * run.recipe.image_size[1]
    images, _ = held_out_images(run, max(1, min(BLIND, BLIND_VALUES // values)))
    return blind_loss(run.pretrainer, images)


def _next(run: Run) -> str:
    """The next command: a probe if there are labels, which alone can say how good features are."""
    folder = escape(shlex.quote(str(run.folder)))
    if run.source.has_labels:
        return f"Next, to compare its features with the untrained network's:\n  [bold]patchcast probe {folder}[/]"
    return (
        f"Next, to see it on one page:\n  [bold]patchcast report {folder}[/]\n"
        "How good the features are, only labels can tell: patchcast probe RUN --data LABELED"
    )


Phases = list[tuple[int, Sampled]]
"""What is trained on, each from a step on."""
Feed = tuple[Pretrainer, Phases, Move, DataLoader[Any] | None, CodeData | None]


def _feed(run: Run, journal: Journal) -> Feed:
    """What is trained, and on what: augmented images, or codes of their colors, encoded once."""
    recipe, images, held_out = run.recipe, run.source.train, run.source.held_out
    images.write_down(journal)
    judged = None
    if held_out is not None:
        held_out.images.write_down(journal)
        judged = held_out.images.subset(np.array(evenly_spaced(len(held_out.images), EVALUATED))).readable()
    if run.method.codes == "colors":
        assert isinstance(run.tokenizer, Palette)
        codes = encode(recipe, run.tokenizer, images, judged)
        return on_codes(run.pretrainer), [(0, codes.train)], moved, codes.held_out, codes
    loader = None if judged is None else DataLoader(EvalSet(judged, run.evaluation), batch_size=recipe.batch_size)
    on_gpu = uses_cuda(recipe.device)
    augments: list[tuple[int, Any]] = [(step, augmentation(recipe, size)) for step, size in recipe.phases()]
    augments = [(step, Cutter(augment) if on_gpu else augment) for step, augment in augments]
    if isinstance(images.store, HeadStore):
        rows = images.store.stream
        streams = [(step, StreamSet(rows, images.channels, augment, recipe.seed)) for step, augment in augments]
        for _, stream in streams:
            stream.write_down(journal)
        return run.pretrainer, [*streams], moved, loader, None
    examples: Examples = images
    if recipe.packed is not None:
        with stage("Decoding the training images into the cache"):
            examples = pack_images(images, recipe.packed)
    if recipe.decode == "gpu":
        from patchcast.data.jpeg_batches import JPEGSet  # needs torchvision's decoder

        files = [(step, JPEGSet(images, augment, recipe.seed)) for step, augment in augments]
        return run.pretrainer, [*files], files[0][1].move, loader, None
    train_sets = [(step, TrainSet(examples, augment, recipe.seed)) for step, augment in augments]
    return run.pretrainer, [*train_sets], moved, loader, None


def _train(
    recipe: Resolved,
    pretrainer: Pretrainer,
    phases: Phases,
    move: Move,
    judged: DataLoader[Any] | None,
    looks: list[Look],
    blind: float | None,
) -> float:
    (_, train_set), *later = phases
    stream = Stream(
        train_set,
        later=later,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        seed=recipe.seed,
        workers=recipe.workers,
        accumulate=recipe.accumulate,
        ahead=reads_ahead(recipe.device, recipe.workers),
        move=move,
    )
    with closing(make_loggers(recipe)) as loggers:
        return train(
            pretrainer,
            stream,
            judged,
            optimization=Optimization(
                lr=recipe.lr,
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


def _summary(run: Run) -> str:
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
