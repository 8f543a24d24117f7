"""Runs a pretrainer over a stream of batches, with checkpoints, and goes on where an earlier process stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from patchcast.data import EpochSampler, TrainSet, loader
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Device, Precision
from patchcast.training.log import MetricsFile
from patchcast.training.module import Training
from patchcast.training.optimization import Optimization
from patchcast.training.progress import ProgressLine

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
    """

    precision: Precision
    device: Device
    log_every: int
    eval_every: int
    checkpoint_every: int


class Stream:
    """The batches of a whole run as one loader, which knows how many it has given.

    Lightning sees one epoch that is as long as the run: the time left is then the run's, and the place in the stream is
    a number in the checkpoint.
    """

    def __init__(self, train_set: TrainSet, *, batch_size: int, steps: int, seed: int, workers: int) -> None:
        self.train_set, self.workers = train_set, workers
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.given = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        sampler = EpochSampler(
            len(self.train_set), self.batch_size, seed=self.seed, steps=self.steps, start_step=self.given
        )
        for batch in loader(self.train_set, sampler, self.workers):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


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
) -> None:
    """Train in place to the stream's last step, from the last checkpoint under `out` if there is one."""
    out.mkdir(parents=True, exist_ok=True)
    log = MetricsFile(out / "metrics.csv")
    checkpoints = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=2,
        every_n_train_steps=engine.checkpoint_every,
        enable_version_counter=False,
    )
    module = Training(pretrainer, optimization, steps=stream.steps, seed=stream.seed)
    last = latest_checkpoint(out)
    if last is not None:
        log.go_on_from(step_of(last))
    with warnings.catch_warnings():
        _hush_lightning()
        callbacks = [checkpoints, ProgressLine(title, stream.batch_size), *(extra_callbacks or [])]
        trainer = L.Trainer(
            accelerator=engine.device,
            devices=1,
            precision=LIGHTNING_PRECISION[engine.precision],  # type: ignore[arg-type]
            max_steps=stream.steps,
            gradient_clip_val=optimization.clip,
            logger=[log, *(extra_loggers or [])],
            log_every_n_steps=min(engine.log_every, stream.steps),
            val_check_interval=min(engine.eval_every, stream.steps),
            callbacks=[*callbacks],  # a list of Lightning's own, which it adds to
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the stream knows which image comes when
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
        _keep_out_strangers(trainer, callbacks)
        trainer.fit(module, stream, held_out, ckpt_path=last, weights_only=True)


def _keep_out_strangers(trainer: L.Trainer, ours: list[L.Callback]) -> None:
    """Lightning adds the callbacks that other installed packages register (stable-pretraining: fourteen, writing into
    the run's folder and the terminal). A run must be the same whatever else is installed."""
    found: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found[:] = [each for each in found if each in ours or type(each).__module__.startswith("lightning.")]


def latest_checkpoint(out: Path) -> Path | None:
    """The checkpoint of the latest step under a run's folder."""
    return max((out / "checkpoints").glob("step=*.ckpt"), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step="))


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


def default_workers(device: Device) -> int:
    """None beside a CPU that trains; one for each core, up to 8, beside a GPU."""
    return 0 if device == "cpu" or not torch.cuda.is_available() else min(8, os.cpu_count() or 1)


def default_precision() -> Precision:
    """bf16 where there is hardware for it, fp32 elsewhere."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "fp32"
