"""How fast a run trains, in fp32 and in bf16: a few of its own steps before it starts, on a copy of its network."""

from __future__ import annotations

import copy
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.data import Cuts, Cutter, EpochSampler, TrainSet, finish, loader
from patchcast.data.streamed import HeadStore
from patchcast.files import cache_file, write_cache, write_json
from patchcast.honesty import no_leak, perturbed
from patchcast.methods import on_codes
from patchcast.modes import evaluating
from patchcast.recipe import AttentionKernel, Precision
from patchcast.runs.run import Run
from patchcast.runs.watch import EVALUATED, WATCHED
from patchcast.training.ahead import moved
from patchcast.training.engine import LossModule, products_in, uses_cuda
from patchcast.training.optimization import Optimization, make_optimizer

FUSED: AttentionKernel = "fused"
EXPLICIT: AttentionKernel = "explicit"
LEAST_SECONDS = 1.0
"""Time for which each precision is measured."""
STEP_SECONDS = 0.2
"""A step is measured with more images until it takes this long, up to those of a micro-batch."""
FEWEST = 2
"""Images with which measuring begins."""
READ_AT_MOST = 64
"""Images that are read for measuring: a step with more has them several times."""
WORTHWHILE = 120.0
"""Expected seconds of a run from which on both precisions are measured: a shorter one would gain little."""
MARGIN = 1.05
"""By how much bf16 has to be faster than fp32 to be taken: less could be chance."""
ALLOWED_DIFFERENCE = 0.05
"""Largest difference between the losses of the two precisions, relative to that of fp32."""


@dataclass(frozen=True)
class Choice:
    """Which precision a run trains in, and why.

    Attributes:
        ratio: the time of a step in fp32 over that in bf16, without the optimizer's.
        problem: why bf16 must not be used; empty if it may.
        processor: on which it was measured.
        attention: the faster way in bf16.
    """

    ratio: float
    problem: str
    processor: str
    attention: AttentionKernel = "fused"

    @property
    def precision(self) -> Precision:
        return "bf16" if self.ratio >= MARGIN and not self.problem else "fp32"

    def __str__(self) -> str:
        but = f", but {self.problem}" if self.problem else ""
        how = " with explicit attention" if self.attention == "explicit" else ""
        return (
            f"bf16{how}: {self.ratio:.2f} times as fast as fp32 on {self.processor}{but}; training in {self.precision}"
        )


class Rehearsal:
    """Training steps that teach nothing, on a copy of a run's network with images of its data.

    The run's own weights, random state and files are left as they are. Steps compute gradients and leave the weights.
    The optimizer is measured apart from them (`update_seconds`), as it takes the same time for any number of images. A
    copy of the weights, their gradients and the optimizer's state need 16 bytes per parameter.
    """

    def __init__(self, run: Run) -> None:
        recipe = run.recipe
        self.run, self.device = run, torch.device("cuda" if uses_cuda(recipe.device) else "cpu")
        self.largest = recipe.batch_size // (recipe.devices * recipe.nodes * recipe.accumulate)
        whole = copy.deepcopy(run.pretrainer).to(self.device).train()
        self.whole, self.pretrainer = whole, on_codes(whole).train() if run.method.codes == "colors" else whole
        for parameter in self.pretrainer.idle_parameters():
            parameter.requires_grad_(False)
        if recipe.checkpointing:
            self.pretrainer.backbone.model.set_grad_checkpointing(True)
        self.data_seconds = 0.0  # to read and augment an image
        self._draw(1)  # the first image opens files, which would count as reading
        self.images = self._draw(min(FEWEST, self.largest))

    def seconds(self, precision: Precision, clock: Callable[[], float] = time.perf_counter) -> float:
        """The time of one step, without the optimizer's."""
        self._wait()
        began = clock()
        self.step(precision)
        self._wait()
        return clock() - began

    def step(self, precision: Precision) -> float:
        """The loss of one step: the same images, plan and dropout each time."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.run.recipe.seed)
            self.pretrainer.zero_grad()
            plan = self.pretrainer.draw(self.images, each=self.pretrainer.repeat)
            loss = LossModule(self.pretrainer, precision)(self.images, plan)
            loss.backward()
            self.pretrainer.after_step()
        return float(loss.detach())

    def update_seconds(self, precision: Precision) -> float:
        """The time that the optimizer takes in each step, measured at a rate of 0."""
        still = Optimization(lr=0.0, optimizer=self.run.recipe.optimizer)
        optimizer = make_optimizer(self.pretrainer, still, products_in(precision))
        self.step(precision)
        taken = 0.0
        for _ in range(2):  # the first one makes the optimizer's state
            self._wait()
            began = time.perf_counter()
            optimizer.step()
            self._wait()
            taken = time.perf_counter() - began
        return taken

    @property
    def starts_full(self) -> bool:
        """Whether all images of a micro-batch are taken at once: with a few a GPU waits for the CPU."""
        return self.device.type == "cuda"

    def grow(self, precision: Precision) -> float:
        """Take more images per step until one takes `STEP_SECONDS`; returns the time of that step."""
        if self.starts_full:
            self.images = self._draw(self.largest)
        self.step(precision)  # the first one makes buffers and chooses kernels
        while (taken := self.seconds(precision)) < STEP_SECONDS and len(self.images) < self.largest:
            self.images = self._draw(min(self.largest, 2 * len(self.images)))
        return taken

    def rate(self, precision: Precision) -> float:
        """Images per second of one step, without reading them: the median of at least three steps."""
        taken = [self.seconds(precision) for _ in range(3)]
        while sum(taken) < LEAST_SECONDS:
            taken.append(self.seconds(precision))
        return len(self.images) / statistics.median(taken)

    @contextmanager
    def resized(self, size: tuple[int, int]) -> Iterator[None]:
        """Inside, images have another height and width."""
        images = self.images
        if images.shape[-2:] != size:
            self.images = F.interpolate(images, size)
        try:
            yield
        finally:
            self.images = images

    def evaluation_seconds(self, precision: Precision) -> float:
        """The time of one evaluation: the loss of held-out images, and features of training images."""
        source = self.run.source
        judged = 0 if source.held_out is None else min(EVALUATED, len(source.held_out.images))
        watched = min(WATCHED, len(source.train))
        objective = LossModule(self.pretrainer, precision)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), evaluating(self.pretrainer):
            plan = self.pretrainer.draw(self.images)
            times = []
            for run in (lambda: objective(self.images, plan), lambda: self.pretrainer.backbone.pool(self.images)):
                if self.starts_full:
                    run()  # a GPU chooses kernels at the first call
                self._wait()
                began = time.perf_counter()
                run()
                self._wait()
                times.append((time.perf_counter() - began) / len(self.images))
        return judged * times[0] + watched * times[1]

    def compare(self) -> Choice:
        """The checks of bf16, and steps in both precisions by turns.

        Measured in processor time on the CPU, which other work on the machine disturbs least.
        """
        problem = self.problem_of_bf16()
        fused = self._by_turns(["fp32", "bf16"])
        seconds, attention = fused["bf16"], FUSED
        if not problem and use_attention(self.pretrainer, EXPLICIT):
            explicit = self._by_turns(["bf16"])["bf16"]
            if seconds >= MARGIN * explicit and not self.problem_of_bf16():
                seconds, attention = explicit, EXPLICIT
            use_attention(self.pretrainer, attention)
        return Choice(fused["fp32"] / seconds, problem, processor(), attention)

    def _by_turns(self, precisions: list[Precision]) -> dict[Precision, float]:
        """The shortest time of a step in each."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        taken: dict[Precision, list[float]] = {precision: [] for precision in precisions}
        while len(taken["bf16"]) < 3 or sum(map(sum, taken.values())) < len(precisions) * LEAST_SECONDS:
            for precision, seconds in taken.items():
                seconds.append(self.seconds(precision, clock))
        return {precision: min(seconds) for precision, seconds in taken.items()}

    def problem_of_bf16(self) -> str:
        """Why bf16 must not be used; empty if it may. It leaves noise in the weights of this rehearsal."""
        exact, rounded = self.step("fp32"), self.step("bf16")
        gradients = [weight.grad for weight in self.pretrainer.parameters() if weight.grad is not None]
        if not math.isfinite(rounded):
            return f"its loss is {rounded}"
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return "its gradients are not finite"
        if abs(rounded - exact) > ALLOWED_DIFFERENCE * abs(exact):
            return f"its loss is {rounded:.4g} where that of fp32 is {exact:.4g}"
        pretrainer = perturbed(self.whole)
        height, width = self.run.recipe.image_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, self.run.recipe.channels, height, width, generator=generator).to(self.device)
        plan = pretrainer.draw(images, torch.Generator().manual_seed(1))
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            leak = no_leak(pretrainer, images, plan, limit=2)
        return f"hidden pixels change its predictions by {leak.worst:.2g}" if leak.worst else ""

    def _draw(self, count: int) -> Tensor:
        """Images as training gets them, or random ones of a stream or of codes, which have not been read yet."""
        run, recipe = self.run, self.run.recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        backbone = self.pretrainer.backbone
        if isinstance(backbone, ImageGPTBackbone):
            codes = torch.randint(backbone.tokenizer.vocabulary, (count, 1, *recipe.image_size), generator=generator)
            return codes.to(self.device)
        if isinstance(run.source.train.store, HeadStore):
            return torch.randn(count, recipe.channels, *recipe.image_size, generator=generator).to(self.device)
        on_gpu = self.device.type == "cuda"
        augment: Any = Cutter(run.augmentation) if on_gpu else run.augmentation  # as in training
        train_set, read = TrainSet(run.source.train, augment, recipe.seed), min(count, READ_AT_MOST)
        began = time.perf_counter()
        [(images, _)] = loader(train_set, EpochSampler(len(train_set), read, seed=recipe.seed, steps=1), workers=0)
        self.data_seconds = (time.perf_counter() - began) / read
        images = moved(images, self.device)
        if isinstance(images, Cuts):
            images = finish(run.augmentation, images)
        return images[torch.arange(count) % read]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def use_attention(network: nn.Module, kernel: AttentionKernel) -> int:
    """Have timm's attention layers use torch's fused kernel or explicit products; returns how many have the choice.

    >>> import timm
    >>> use_attention(timm.create_model("test_vit"), "explicit")
    6
    """
    layers = [layer for layer in network.modules() if isinstance(getattr(layer, "fused_attn", None), bool)]
    for layer in layers:
        layer.fused_attn = kernel == FUSED  # type: ignore[assignment]
    return len(layers)


def choose_precision(rehearsal: Rehearsal) -> Choice:
    """Measure both precisions on this machine, or take what was measured here before for the same model and sizes."""
    recipe = rehearsal.run.recipe
    names = ("method", "model", "method_args", "model_args", "image_size", "patch_size", "tile_size", "channels")
    what = [*(str(getattr(recipe, name)) for name in names), rehearsal.largest, recipe.checkpointing]
    file = cache_file(
        ["precision and attention", processor(), torch.get_num_threads(), torch.__version__, *what], ".json"
    )
    with suppress(OSError, ValueError, TypeError):
        return Choice(**json.loads(file.read_text(encoding="utf-8")))
    choice = rehearsal.compare()
    write_cache(file, lambda unfinished: write_json(unfinished, asdict(choice)))
    return choice


def processor() -> str:
    """The processor's name.

    >>> len(processor()) > 0
    True
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine() or "an unknown processor"
