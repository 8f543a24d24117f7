"""`patchcast pretrain`: run or resume a recipe, or say what it would take."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import nullcontext

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.prompt import Confirm

from patchcast.data import Journal
from patchcast.data.names import escape
from patchcast.heap import keep_freed_memory
from patchcast.interop.export_formats import exported_as
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.defaults import in_words
from patchcast.runs.feed import check_feed, feed_of
from patchcast.runs.forecast import ASKS_FROM, Forecast, foresee, memory_in_words
from patchcast.runs.pretraining import blind_of, train_run
from patchcast.runs.results import after_start, write_results
from patchcast.runs.run import Run, open_run, start_run
from patchcast.runs.run_folder import BAD_IMAGES, claim, holds_run, note_overwriting, without_second_overwriting
from patchcast.runs.run_summary import run_summary, too_few
from patchcast.runs.starting import keep_report
from patchcast.runs.tokenizer import save_tokenizer
from patchcast.runs.watch import check_loggers, watches
from patchcast.stages import stage
from patchcast.training.engine import uses_cuda
from patchcast.training.lock import locked
from patchcast.training.looks import Look
from patchcast.training.progress import duration


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
    check_feed(run)
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


def dry_run(recipe: Recipe) -> Forecast:
    """Print what a recipe would take. No folder is made, and nothing is trained.

    Raises:
        ValueError: as `pretrain` does.
    """
    console = Console()
    if not uses_cuda(recipe.device):
        keep_freed_memory()
    run = start_run(recipe)
    with stage("Measuring the speed of a few steps"), memory_in_words(run.recipe):
        run, forecast = foresee(run, recipe, in_full=True)
    _describe(run, console)
    if forecast.choice is not None:
        console.print(escape(str(forecast.choice)), highlight=False)
    console.print(forecast.table(run.recipe), highlight=False, markup=False)
    return forecast


def _describe(run: Run, console: Console) -> None:
    console.print(run_summary(run), highlight=False)
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
    feed = feed_of(run, journal)
    if feed.codes is not None:
        console.print(f"{feed.codes}", highlight=False)
    blind = blind_of(run, feed)
    if blind is not None:
        console.print(f"A blind prediction, which ignores the image, has a loss of {blind:.2f}.", highlight=False)
    begun = time.perf_counter()
    waited = train_run(run, feed, looks, blind, saves=is_first)
    if not is_first:
        return run.recipe
    unreadable = journal.close()
    with stage("Drawing pictures and writing results"):
        run = open_run(run.folder, source=run.source)  # on the CPU, as every later command opens it
        loss = " ".join(filter(None, [*after_start(run), write_results(run, feed.codes, unreadable, blind=blind)]))
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


def _next(run: Run) -> str:
    """The next command: a probe if there are labels, which alone can say how good features are."""
    folder = escape(shlex.quote(str(run.folder)))
    if run.source.has_labels:
        return f"Next, to compare its features with the untrained network's:\n  [bold]patchcast probe {folder}[/]"
    return (
        f"Next, to see it on one page:\n  [bold]patchcast report {folder}[/]\n"
        "How good the features are, only labels can tell: patchcast probe RUN --data LABELED"
    )
