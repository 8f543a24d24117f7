"""What a run will take, said before it starts; and what a recipe leaves to be decided by it.

Left to decide are the precision (`auto`), the number of micro-batches (`batch_size: auto`) and of steps (`minutes`).
They are decided once, when a run begins, and its config.yaml holds them: the same command resumes with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from patchcast.data import Source
from patchcast.files import write_json
from patchcast.methods import on_codes
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.build import passes
from patchcast.runs.costs import Memory, step_flops, step_memory
from patchcast.runs.run import Run
from patchcast.runs.run_folder import FORECAST
from patchcast.runs.speed import WORTHWHILE, Choice, Rehearsal, choose_precision, processor, use_attention
from patchcast.training.engine import reads_ahead, uses_cuda
from patchcast.training.optimization import freeze_blocks
from patchcast.training.progress import duration

EVALUATIONS = 10
"""Evaluations of a run, where `eval_every` does not say otherwise."""
AT_LEAST_TRAINING = 0.5
"""Share of `minutes` for training, however long evaluations take."""
ASKS_FROM = 3600.0
"""Expected seconds of a run from which on it asks, on a terminal, whether to start."""
HINTS_FROM = 600.0
"""Expected seconds from which on it says how to make the run shorter."""
FREE_SHARE = 0.8
"""Share of the free memory that a step may take, where the number of micro-batches follows from it."""


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to take. What was not measured or computed is None.

    Attributes:
        steps: of the optimizer.
        parameters: that are trained.
        rate: images per second.
        seconds: of the whole run, evaluations included.
        memory: of a step's tensors on one device.
        process: bytes of main memory that the process held before.
        flops: of a step, over all devices.
        choice: of the precision, if it was measured.
        on: the processor or GPU.
        minutes: that were asked for.
    """

    steps: int
    parameters: int
    rate: float | None = None
    seconds: float | None = None
    memory: Memory | None = None
    process: int = 0
    flops: int | None = None
    choice: Choice | None = None
    on: str = ""
    minutes: float | None = None

    def __str__(self) -> str:
        words = ["1 step" if self.steps == 1 else f"{self.steps:,} steps"]
        words += [] if self.seconds is None else [f"about {duration(self.seconds)}"]
        words += [] if self.memory is None else [f"{(self.memory.peak + self.process) / 1e9:.1f} GB of memory"]
        is_long = self.seconds is not None and self.seconds > HINTS_FROM and self.minutes is None
        return ", ".join(words) + ("; --minutes 10 makes it shorter" if is_long else "")

    def table(self, recipe: Resolved) -> str:
        """Every number, a line each, for `--dry_run`."""
        lines = [f"parameters  {self.parameters:,} are trained"]
        if self.memory is not None:
            parts = {"weights": self.memory.weights, "optimizer": self.memory.moments, "step": self.memory.step}
            parts |= {"process": self.process} if self.process else {}
            shown = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
            lines.append(f"memory      {(self.memory.peak + self.process) / 1e9:.2f} GB per device: {shown}")
        if self.flops is not None:
            lines.append(f"work        {self.flops / 1e12:.3g} TFLOP per step of {recipe.batch_size} images")
        if self.rate is not None and self.seconds is not None:
            done = "" if self.flops is None else f", {self.flops / recipe.batch_size * self.rate / 1e9:,.0f} GFLOP/s"
            lines.append(f"speed       {self.rate:,.3g} images/s in {recipe.precision} on {self.on}{done}")
            lines.append(f"time        about {duration(self.seconds)}")
        pieces = f", in {recipe.accumulate} micro-batches each" if recipe.accumulate > 1 else ""
        lines.append(f"steps       {self.steps:,}, {recipe.epochs:g} epochs{pieces}")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write the numbers that say how the run was decided into its folder."""
        names = ("steps", "parameters", "rate", "seconds", "flops", "on", "minutes")
        write_json(folder / FORECAST, {name: getattr(self, name) for name in names})


def foresee(run: Run, asked: Recipe, *, in_full: bool = False) -> tuple[Run, Forecast]:
    """The run with what its recipe left to decide, and what it will take.

    Steps are measured on a copy of the network (`Rehearsal`) where one process trains. A run of less than
    `WORTHWHILE` seconds is measured by two steps only, and its memory is not computed.

    Args:
        asked: the recipe, before it had a value for every option.
        in_full: compute everything, even for a short run.
    Raises:
        ValueError: if memory is too small for one image at a time, or `minutes` is asked for on several devices.
    """
    if run.recipe.freeze_blocks:
        freeze_blocks(run.pretrainer.backbone, run.recipe.freeze_blocks)
    if asked.batch_size == "auto":
        run = replace(run, recipe=replace(run.recipe, accumulate=fitting_pieces(run)))
    parameters = sum(weight.numel() for weight in trained(run).parameters() if weight.requires_grad)
    if run.recipe.devices * run.recipe.nodes > 1:
        if asked.minutes is not None:
            raise ValueError("minutes follow from the speed of one device, and several share this run; give steps")
        return run, _with_sizes(Forecast(run.recipe.steps, parameters), run, in_full)
    rehearsal = Rehearsal(run)
    recipe, choice = run.recipe, None
    update = rehearsal.update_seconds(recipe.precision) / recipe.batch_size
    per_image = rehearsal.grow(recipe.precision) / len(rehearsal.images) + update
    expected = recipe.steps * recipe.batch_size * per_image if asked.minutes is None else 60 * asked.minutes
    is_long = expected >= WORTHWHILE or in_full
    on_cpu = rehearsal.device.type == "cpu"
    if on_cpu and (asked.precision == "auto" or (is_long and asked.precision is None)):
        choice = choose_precision(rehearsal)
        recipe = replace(recipe, precision=choice.precision)
        if asked.attention is None and recipe.precision == "bf16":
            recipe = replace(recipe, attention=choice.attention)
    use_attention(rehearsal.pretrainer, recipe.attention)
    if is_long:
        update = rehearsal.update_seconds(recipe.precision) / recipe.batch_size
        per_image = _seconds_per_image(rehearsal, recipe) + update
    # Workers, or a thread, read while the network trains; without them, reading comes on top.
    read = rehearsal.data_seconds
    is_ahead = recipe.workers or (reads_ahead(recipe.device, 0) and not run.source.is_stream)
    per_image = max(per_image, read / max(1, recipe.workers)) if is_ahead else per_image + read
    looks = rehearsal.evaluation_seconds(recipe.precision) if is_long else 0.0
    if asked.minutes is not None:
        left = max(AT_LEAST_TRAINING * expected, expected - EVALUATIONS * looks)
        recipe = with_steps(recipe, max(1, round(left / (per_image * recipe.batch_size))), asked, run.source)
    del rehearsal
    evaluations = -(-recipe.steps // recipe.eval_every)
    seconds = recipe.steps * recipe.batch_size * per_image + evaluations * looks
    run = replace(run, recipe=recipe)
    if asked.minutes is not None and run.method.takes_steps:
        run = replace(run, pretrainer=run.untrained())  # its teacher's schedule has the number of steps
    use_attention(run.pretrainer, recipe.attention)
    if asked.batch_size == "auto" and recipe.attention == "explicit":  # it takes more memory
        run = replace(run, recipe=replace(recipe, accumulate=fitting_pieces(run)))
    where = torch.cuda.get_device_name() if uses_cuda(recipe.device) else processor()
    found = Forecast(recipe.steps, parameters, 1 / per_image, seconds, choice=choice, on=where, minutes=asked.minutes)
    return run, _with_sizes(found, run, in_full, is_long)


def _seconds_per_image(rehearsal: Rehearsal, recipe: Resolved) -> float:
    """The mean over the steps, whose images may grow; without reading them."""
    firsts, sizes = zip(*recipe.phases(), strict=True)
    steps = [after - first for first, after in pairwise([*firsts, recipe.steps])]
    total = 0.0
    for count, size in zip(steps, sizes, strict=True):
        with rehearsal.resized(size):
            total += count / rehearsal.rate(recipe.precision)
    return total / recipe.steps


def with_steps(recipe: Resolved, steps: int, asked: Recipe, source: Source) -> Resolved:
    """The recipe with another number of steps, and what follows from it."""
    frozen = asked.freeze_first
    if frozen is None:
        frozen = recipe.freeze_first * steps // recipe.steps
    elif frozen >= steps:
        raise ValueError(
            f"freeze_first={frozen} freezes the backbone in all {steps} steps of these minutes; give fewer"
        )
    often = -(-steps // EVALUATIONS)  # rounded up: with few steps, evaluations take the most time
    return replace(
        recipe,
        steps=steps,
        epochs=recipe.epochs if source.is_stream else passes(steps, recipe.batch_size, len(source.train)),
        freeze_first=frozen,
        eval_every=asked.eval_every or often,
        checkpoint_every=asked.checkpoint_every or often,
    )


def fitting_pieces(run: Run, memory: Callable[[], int] | None = None) -> int:
    """The smallest number of micro-batches, a power of two, with which a step fits into free memory.

    Raises:
        ValueError: if one image at a time needs more.
    """
    recipe = run.recipe
    free = FREE_SHARE * (memory or (lambda: free_memory(recipe)))()
    share = recipe.batch_size // (recipe.devices * recipe.nodes)
    pieces = recipe.accumulate
    while True:
        needed = step_memory(
            trained(run),
            share // pieces,
            precision=recipe.precision,
            pieces=pieces,
            averaged=bool(recipe.ema),
            optimizer=recipe.optimizer,
        )
        if needed.peak <= free:
            return pieces
        if share % (2 * pieces):
            raise ValueError(
                f"a step of {share // pieces} images needs {needed.peak / 1e9:.1f} GB, and {free / 1e9:.1f} are free; "
                "give --checkpointing, a smaller model or smaller images"
            )
        pieces *= 2


def free_memory(recipe: Resolved) -> int:
    """Bytes that a run may still take: of the GPU, or of main memory within the limits of a container."""
    if uses_cuda(recipe.device):
        return torch.cuda.mem_get_info()[0]
    free = []
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    with suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if not free:
        free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(free))


@contextmanager
def memory_in_words(recipe: Resolved) -> Iterator[None]:
    """Errors of used-up memory become one sentence.

    Raises:
        ValueError: with what to try.
    """
    try:
        yield
    except (RuntimeError, torch.OutOfMemoryError) as problem:
        sentence = out_of_memory(problem, recipe)
        if not sentence:
            raise
        raise ValueError(sentence) from problem


def out_of_memory(problem: BaseException, recipe: Resolved) -> str:
    """One sentence if an error says that memory is used up, with what to try; empty if it says something else."""
    is_cpu = isinstance(problem, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(problem)
    if not is_cpu and not isinstance(problem, torch.OutOfMemoryError):
        return ""
    pieces = recipe.devices * recipe.nodes * recipe.accumulate
    at_once = recipe.batch_size // pieces
    if at_once % 2:
        return f"memory is too small for {at_once} images at once; give --checkpointing, or train a smaller model"
    return (
        f"memory is too small for {at_once} images at once; --accumulate {2 * recipe.accumulate} takes {at_once // 2} "
        "at once and learns the same; the same command with it resumes"
    )


def trained(run: Run) -> Pretrainer:
    """What is trained: on codes where images become codes before training."""
    return on_codes(run.pretrainer) if run.method.codes == "colors" else run.pretrainer


def _with_sizes(found: Forecast, run: Run, *wanted: bool) -> Forecast:
    if not any(wanted):
        return found
    recipe, pretrainer = run.recipe, trained(run)
    if recipe.checkpointing:
        pretrainer.backbone.model.set_grad_checkpointing(True)
    pieces = recipe.devices * recipe.nodes * recipe.accumulate
    memory = step_memory(
        pretrainer,
        recipe.batch_size // pieces,
        precision=recipe.precision,
        pieces=recipe.accumulate,
        averaged=bool(recipe.ema),
        optimizer=recipe.optimizer,
    )
    flops = step_flops(pretrainer, 2) * recipe.batch_size // 2 if wanted[0] else None
    return replace(
        found, memory=memory, flops=flops, process=0 if uses_cuda(recipe.device) else _held() - memory.weights
    )


def _held() -> int:
    """Bytes of main memory that this process holds."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
