"""Checkpoints of a run: written atomically, the last two kept, damaged ones skipped."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from patchcast.training.engine import shared_like, whole

KEPT = 2
NAME = re.compile(r"step=(\d+)\.ckpt")
PLANS = "2026-12"
"""Which rules plans are drawn by: see `patchcast.plans.earlier`."""


@dataclass
class Checkpoint:
    """The state from which a run resumes.

    Attributes:
        step: optimizer steps done.
        model: the full state dict of a `LossModule`, on the CPU; parameter names start with `pretrainer.`.
        optimizer: Adam's state of each parameter, by parameter name (in Lightning's checkpoints by number).
        stream: the position in the stream of batches.
        looks: the state of each `Look`, by class name.
        plans: version of the rules by which plans are drawn (`PLANS`); None in checkpoints from before December 2026.
        is_seen: whether the evaluation of this step is done.
        average: the averaged weights, by parameter name; None if there are none.
        is_lightnings: written by a version of patchcast that trained with Lightning's Trainer.
    """

    step: int
    model: dict[str, Any]
    optimizer: Mapping[str | int, dict[str, Any]]
    stream: dict[str, Any]
    looks: dict[str, dict[str, Any]]
    plans: str | None = PLANS
    is_seen: bool = True
    average: dict[str, Any] | None = None
    is_lightnings: bool = False


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `step=N.ckpt`, and remove all but the latest two.

    Raises:
        OSError: if the disk is full; the partial file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step={checkpoint.step}.ckpt"
    partial = file.with_suffix(".partial")
    state = {
        "state_dict": checkpoint.model,
        **{name: value for name, value in vars(checkpoint).items() if name != "model"},
    }
    try:
        with partial.open("wb") as out:
            writer = _Writer(out)
            try:
                torch.save(state, cast(BinaryIO, writer))
            except RuntimeError as problem:  # torch replaces the operating system's error by its own
                raise writer.problem or problem from problem
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(file)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()


class _Writer:
    """A file that remembers the error of a write."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.out.write(data)
        except OSError as problem:
            self.problem = problem
            raise

    def flush(self) -> None:
        self.out.flush()


def load_latest(out: Path) -> Checkpoint | None:
    """The latest readable checkpoint of a run folder; warns about damaged ones and skips them."""
    for file in reversed(checkpoints(out / "checkpoints")):
        if is_whole(file):
            try:
                return load(file)
            except (OSError, MemoryError):
                raise
            except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
                pass  # checksums do not cover the zip archive's own directory
        warnings.warn(f"{file} is damaged and is skipped", stacklevel=2)
    return None


def load(file: Path) -> Checkpoint:
    """Read a checkpoint, including those of versions that trained with Lightning's Trainer.

    Raises:
        RuntimeError, ValueError, KeyError: if the file is damaged; torch's reader may raise others.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    if "pytorch-lightning_version" not in state:
        names = Checkpoint.__dataclass_fields__.keys() - {"model"} - ({"average"} - state.keys())
        return Checkpoint(model=state["state_dict"], **{name: state[name] for name in names})
    step = state["global_step"]
    optimizer = state["optimizer_states"][0]
    numbered = [name for group in optimizer["param_groups"] for name in group["params"]]
    place = state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].get("place")
    return Checkpoint(
        step,
        state["state_dict"],
        {name: optimizer["state"][name] for name in numbered if name in optimizer["state"]},
        {"step": step, "place": place},
        state["callbacks"],
        state.get("plans"),
        is_lightnings=True,
    )


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str | int, dict[str, Any]]:
    """The full optimizer state on the CPU, by parameter name, for any number of devices. Every rank must call this."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: {key: whole(value) for key, value in state.items()}
        for parameter, state in optimizer.state.items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str | int, dict[str, Any]]
) -> None:
    """Load what `optimizer_state` returned, or Lightning's state, which is numbered in the optimizer's order.

    Raises:
        KeyError: if the state is from a different model.
    """
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    numbered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    by_name = {numbered[key] if isinstance(key, int) else key: value for key, value in state.items()}
    own = optimizer.state_dict()
    own["state"] = {
        numbered.index(name): {key: shared_like(value, parameters[name]) for key, value in values.items()}
        for name, values in by_name.items()
    }
    optimizer.load_state_dict(own)


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Load full tensors, sharded like the model's."""
    own = model.state_dict()
    model.load_state_dict(
        {name: shared_like(value, own[name]) if name in own else value for name, value in state.items()}
    )


def latest_checkpoint(out: Path) -> Path | None:
    """The file of the latest undamaged checkpoint of a run folder; warns about damaged ones and skips them."""
    for file in reversed(checkpoints(out / "checkpoints")):
        if is_whole(file):
            return file
        warnings.warn(f"{file} is damaged and is skipped", stacklevel=2)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the latest last. Copies with other names do not count."""
    return sorted((file for file in folder.glob("step=*.ckpt") if NAME.fullmatch(file.name)), key=step_of)


def is_whole(checkpoint: Path) -> bool:
    """Whether all checksums match: torch's files are zip archives with a checksum for every tensor."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except Exception:  # a flipped bit can look like encryption, another compression or a size beyond memory
        return False


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])
