"""Runs a pretrainer over a stream of batches, with checkpoints, and goes on where an earlier process stopped."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.data import Cuts, EpochSampler, StreamSet, TrainSet, loader
from patchcast.data.streamed import WindowSampler
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Device, Precision
from patchcast.training.checkpoints import Checkpoints, WholeFiles, latest_checkpoint, step_of
from patchcast.training.ending import EndWhenAsked
from patchcast.training.guard import FiniteLoss
from patchcast.training.log import MetricsFile
from patchcast.training.module import Training
from patchcast.training.optimization import Optimization
from patchcast.training.progress import ProgressLine
from patchcast.training.throughput import Throughput

LIGHTNING_PRECISION: dict[Precision, str] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Engine:
    """How a run is carried out, none of which changes what is learnt (but for rounding).

    Attributes:
        precision: of matrix products; weights stay fp32.
        device: where.
        log_every: steps between two rows of the log.
        eval_every: steps between two evaluations of the loss on held-out images.
        checkpoint_every: steps between two checkpoints; the last two are kept.
        devices: of each node.
        nodes: machines that share a batch.
        sharded: whether devices share out the weights (FSDP2) instead of each holding all (DDP).
        compiled: whether torch.compile makes kernels for the model.
        checkpointing: whether activations of blocks are computed again instead of kept.
    """

    precision: Precision
    device: Device
    log_every: int
    eval_every: int
    checkpoint_every: int
    devices: int = 1
    nodes: int = 1
    sharded: bool = False
    compiled: bool = False
    checkpointing: bool = False

    @property
    def strategy(self) -> str | Strategy:
        """Of Lightning."""
        ranks = self.devices * self.nodes
        if self.sharded:
            return ModelParallelStrategy(
                data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
            )
        return "ddp" if ranks > 1 else "auto"


class Stream:
    """The batches of a whole run as one loader, which knows how many it has given.

    Lightning sees one epoch that is as long as the run: the time left is then the run's, and the place in the stream is
    a number in the checkpoint; with a source that is read in order (`StreamSet`), also the place to read on from. Each
    rank is given its part of every batch.

    Args:
        batch_size: images of one optimiser step, over all devices.
        accumulate: pieces in which a rank takes its part.

    Attributes:
        waited: seconds from asking for a batch to having it, over all batches that this process was given.
    """

    def __init__(
        self,
        train_set: TrainSet | StreamSet,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        workers: int,
        accumulate: int = 1,
    ) -> None:
        self.train_set, self.workers = train_set, workers
        self.batch_size, self.steps, self.seed, self.accumulate = batch_size, steps, seed, accumulate
        self.given, self.waited = 0, 0.0
        self.place: dict[str, Any] | None = None
        self.sampler: EpochSampler | WindowSampler | None = None

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.sampler = self.train_set.sampler(
            self.batch_size,
            seed=self.seed,
            steps=self.steps,
            start_step=self.given // self.accumulate,
            place=self.place,
            rank=rank,
            world=world,
            accumulate=self.accumulate,
        )
        batches = iter(loader(self.train_set, self.sampler, self.workers))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - asked
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        step = self.given // self.accumulate
        return {"given": self.given, "place": self.place if self.sampler is None else self.sampler.place(step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.place = state["given"], state.get("place")


def train(
    pretrainer: Pretrainer,
    stream: Stream,
    held_out: DataLoader[Any] | None,
    *,
    optimization: Optimization,
    engine: Engine,
    out: Path,
    title: str,
    extra_loggers: list[Logger] | None = None,
    extra_callbacks: list[L.Callback] | None = None,
    finish: Callable[[Cuts], Tensor] | None = None,
) -> None:
    """Train in place to the stream's last step, from the last checkpoint under `out` if there is one.

    Args:
        finish: makes images of what the stream gives, on the device, if it gives crops (`patchcast.data.Cutter`).

    Raises:
        InterruptedError: if the process was asked to end (SIGTERM), after a checkpoint of the step it was at.
        NotFinite: if the loss is no number any more.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = MetricsFile(out / "metrics.csv")
    module = Training(
        pretrainer,
        optimization,
        steps=stream.steps,
        seed=stream.seed,
        accumulate=stream.accumulate,
        finish=finish,
    )
    if engine.checkpointing:
        pretrainer.backbone.model.set_grad_checkpointing(True)
    if engine.compiled:
        pretrainer.compile()
    last = latest_checkpoint(out)
    if last is not None:
        log.go_on_from(step_of(last))
    with warnings.catch_warnings():
        _hush_lightning()
        checkpoints = Checkpoints(
            out / "checkpoints", every=engine.checkpoint_every, metrics=log, metrics_every=engine.log_every
        )
        ending = EndWhenAsked(checkpoints)
        pauses = (engine.eval_every, engine.checkpoint_every)
        throughput = Throughput(stream, log_every=engine.log_every, pauses=pauses)
        callbacks = [
            FiniteLoss(out),
            throughput,
            ProgressLine(title, throughput),
            *(extra_callbacks or []),
            ending,
            checkpoints,
        ]
        trainer = L.Trainer(
            accelerator=engine.device,
            devices=engine.devices,
            num_nodes=engine.nodes,
            strategy=engine.strategy,
            precision=LIGHTNING_PRECISION[engine.precision],  # type: ignore[arg-type]
            max_steps=stream.steps,
            gradient_clip_val=optimization.clip,
            accumulate_grad_batches=stream.accumulate,
            logger=[log, *(extra_loggers or [])],
            log_every_n_steps=min(engine.log_every, stream.steps),
            val_check_interval=min(engine.eval_every, stream.steps) * stream.accumulate,
            plugins=[WholeFiles()],
            callbacks=[*callbacks],  # a list of Lightning's own, which it adds to
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the stream knows which image comes when
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
        _keep_out_strangers(trainer, callbacks)
        try:
            with ending.listening():
                trainer.fit(module, stream, held_out, ckpt_path=last, weights_only=True)
        except SIGTERMException as end:
            if trainer.local_rank and isinstance(trainer.strategy.cluster_environment, LightningEnvironment):  # type: ignore[attr-defined]
                raise SystemExit from end  # without a fault: the process that started this one tells how it went
            step = trainer.global_step
            place = f"at step {step:,}, and saved; the same command goes on there" if step else "before its first step"
            raise InterruptedError(f"asked to end (SIGTERM) {place}") from end
        except SystemExit as end:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from end


def _keep_out_strangers(trainer: L.Trainer, ours: list[L.Callback]) -> None:
    """Lightning adds the callbacks that other installed packages register (stable-pretraining: fourteen, writing into
    the run's folder and the terminal). A run must be the same whatever else is installed."""
    found: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found[:] = [each for each in found if each in ours or type(each).__module__.startswith("lightning.")]


def _hush_lightning() -> None:
    """Advice of Lightning that does not apply, and would stand between the user and the progress bar."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for known in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*treespec.*",
        ".*in eval mode at the start of training.*",  # tokenizers and teachers, which stay so
    ):
        warnings.filterwarnings("ignore", message=known)


def uses_cuda(device: Device) -> bool:
    """Whether a run trains on a GPU of NVIDIA's or AMD's."""
    return device != "cpu" and torch.cuda.is_available()


def default_workers(device: Device) -> int:
    """None beside a CPU that trains; one for each core, up to 8, beside a GPU."""
    return min(8, os.cpu_count() or 1) if uses_cuda(device) else 0


def default_precision() -> Precision:
    """bf16 where there is hardware for it, fp32 elsewhere."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "fp32"
