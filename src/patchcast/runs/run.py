"""`Run`: a run, opened once and passed on: its folder, recipe, method, pretrainer and data source."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patchcast.data import Augment, Evaluate, Source, open_source
from patchcast.data.source import Part
from patchcast.files import read_weights
from patchcast.folder_files import CONFIG
from patchcast.methods import Method
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import HELD_OUT, Recipe, Resolved
from patchcast.runs.auto import with_method
from patchcast.runs.build import augmentation, build, build_started, evaluation, find_method, resolve
from patchcast.runs.defaults import Chosen
from patchcast.runs.run_folder import EVERYTHING, as_begun, check_overwriting, located_data
from patchcast.runs.sizes import with_own_options
from patchcast.runs.starting import (
    absolute_words,
    as_started,
    check_start_folder,
    check_unchanged,
    find_start,
    is_started,
    with_frozen_first,
    with_start,
)
from patchcast.runs.teachers import Teacher, check_same_teacher, check_teacher, find_teacher, teacher_of_run
from patchcast.runs.tokenizer import AnyTokenizer, find_tokenizer, saved_tokenizer
from patchcast.stages import stage
from patchcast.starts import StartReport
from patchcast.starts.opening import model_of
from patchcast.training.checkpoints import latest_checkpoint
from patchcast.training.shards import weights_of


@dataclass
class Run:
    """A run that is about to start, or was opened from its folder.

    Attributes:
        folder: the run folder.
        recipe: with a value for every option.
        method: the recipe's method.
        pretrainer: with initial weights if the run is about to start, else with trained weights.
        tokenizer: for methods that predict codes, else None.
        teacher: for methods that predict another network's features, else None.
        opened: its data source if it is open already; see `source`.
        why: the reasons of `--method auto`, if it is about to start.
        chosen: what the recipe left out and the rule of defaults decided, if it is about to start.
        fitted: what became of the weights that it starts from; None if they are random, or it was opened.
    """

    folder: Path
    recipe: Resolved
    method: Method
    pretrainer: Pretrainer
    tokenizer: AnyTokenizer | None = None
    teacher: Teacher | None = None
    opened: Source | None = None
    fitted: StartReport | None = None
    chosen: dict[str, Chosen] = field(default_factory=dict)
    why: str = ""

    @property
    def source(self) -> Source:
        """The run's data, opened on first access: many commands need the network only."""
        if self.opened is None:
            self.opened = self.open_data(self.recipe.data)
        return self.opened

    def open_data(self, data: str) -> Source:
        """Open a source with the run's channels; for the run's own data, with the same held-out images."""
        is_own = self.recipe.reads(data)
        share = self.recipe.held_out if is_own else 0.0
        given = reading(self.recipe)
        try:
            return open_source(data, channels=self.recipe.channels, held_out_share=share, **given)
        except ValueError:
            if is_own or not (self.recipe.image_column or self.recipe.label_column):
                raise
        # Another source may have other columns.
        return open_source(data, channels=self.recipe.channels, max_pixels=self.recipe.max_pixels)

    def shown(self, data: str | None = None) -> Part:
        """The images that pictures show: the run's held-out ones, or those of another source."""
        if data is None or self.recipe.reads(data):
            return self.source.shown
        source = self.open_data(data)
        return source.held_out or Part(source.train, f"images of {data}")

    @property
    def evaluation(self) -> Evaluate:
        """The deterministic preprocessing of probes and pictures."""
        return evaluation(self.recipe)

    @property
    def augmentation(self) -> Augment:
        """The augmentation of training."""
        return augmentation(self.recipe)

    def untrained(self) -> Pretrainer:
        """The pretrainer as it was before training, built again.

        Raises:
            ValueError: if the weights that it started from cannot be had any more, or are others now.
        """
        target = None if self.teacher is None else self.teacher.target
        start = find_start(self.recipe)
        pretrainer, fitted = build_started(self.recipe, self.method, self.tokenizer, start, target)
        if fitted is not None:
            check_unchanged(fitted, self.folder)
        return pretrainer


def reading(recipe: Recipe) -> dict[str, Any]:
    """How a recipe has its images read, as arguments of `open_source`."""
    return {name: getattr(recipe, name) for name in ("image_column", "label_column", "max_pixels")}


def start_run(recipe: Recipe) -> Run:
    """Resolve and build a recipe. Nothing is written to disk.

    Raises:
        ValueError: for anything that the user can fix.
    """
    recipe = with_own_options(recipe)
    recipe.check()
    check_start_folder(recipe)
    if recipe.overwrite:
        check_overwriting(recipe)
    recipe, is_settled = as_begun(recipe)
    resuming = as_started(recipe)
    start = None if resuming is not None else find_start(recipe)
    if resuming is not None:
        recipe = resuming
    elif start is not None and not recipe.model:
        recipe = replace(recipe, model=model_of(start))
    recipe, why = with_method(recipe)
    method = find_method(recipe.method)
    check_teacher(recipe, method)
    recipe = replace(recipe, teacher=absolute_words(recipe.teacher))
    if start is not None:
        recipe = with_start(recipe, method, start, is_settled=is_settled)
    share = HELD_OUT if recipe.held_out is None else recipe.held_out
    source = open_source(recipe.data, channels=recipe.channels, held_out_share=share, **reading(recipe))
    resolved, chosen = resolve(recipe, method, source, start, is_settled=is_settled)
    with stage(f"Finding {resolved.codes} codes in the training images"):
        kept = None if recipe.overwrite else saved_tokenizer(resolved.out)
        tokenizer = kept or find_tokenizer(resolved, method, source.train)
    with stage(f"Reading the teacher {resolved.teacher}") if resolved.teacher else nullcontext():
        teacher = find_teacher(resolved, source.train)
    if teacher is not None and not recipe.overwrite:
        check_same_teacher(teacher, resolved.out)
    with stage(f"Building {resolved.model}"):
        target = None if teacher is None else teacher.target
        pretrainer, fitted = build_started(resolved, method, tokenizer, start, target)
    if is_started(recipe) and recipe.freeze_first is None:
        resolved = with_frozen_first(resolved, fitted)
    return Run(resolved.out, resolved, method, pretrainer, tokenizer, teacher, source, fitted, chosen, why)


def _whole_weights(folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    try:
        return read_weights(folder / EVERYTHING)
    except ValueError as problem:
        if checkpoint is None:
            raise
        raise ValueError(
            f"{problem}; remove it, and the run's own pretrain command writes it again from {checkpoint}"
        ) from problem


def untrained_run(folder: Path, *, source: Source | None = None) -> Run:
    """Open a run from its folder, with random weights.

    Raises:
        ValueError: if the folder holds no run.
    """
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds no run of patchcast: it has no {CONFIG}")
    try:
        recipe = Resolved.load(folder / CONFIG)
        recipe = replace(recipe, data=located_data(recipe, folder))
        method, tokenizer = find_method(recipe.method), saved_tokenizer(folder)
        teacher = teacher_of_run(recipe, folder)
        pretrainer = build(recipe, method, tokenizer, None if teacher is None else teacher.target)
        return Run(folder, recipe, method, pretrainer, tokenizer, teacher, source)
    # Values that no run of ours has written.
    except (TypeError, AttributeError, LookupError, RuntimeError, OSError) as problem:
        reason = f"{type(problem).__name__}: {problem}".partition("\n")[0]
        raise ValueError(
            f"the network that {folder / CONFIG} describes cannot be built ({reason}); is the file as the run wrote it?"
        ) from problem


def open_run(folder: Path, *, source: Source | None = None) -> Run:
    """Open a run from its folder, with its trained weights.

    Args:
        source: its data, if it is open already.
    Raises:
        ValueError: if the folder holds no run, or a run without weights.
    """
    run = untrained_run(folder, source=source)
    checkpoint = latest_checkpoint(folder)
    if (folder / EVERYTHING).is_file():
        file, state = folder / EVERYTHING, _whole_weights(folder, checkpoint)
    elif checkpoint is not None:
        file, state = checkpoint, weights_of(checkpoint)
        state = {name.removeprefix("pretrainer."): value for name, value in state.items()}
    else:
        raise ValueError(f"the run in {folder} has no weights yet")
    try:
        run.pretrainer.load_state_dict(state)
    except RuntimeError as problem:
        first = str(problem).splitlines()[1].strip() if "\n" in str(problem) else str(problem)
        raise ValueError(f"{file} does not hold the weights of {folder / CONFIG}: {first[:200]}") from problem
    run.pretrainer.eval()
    return run
