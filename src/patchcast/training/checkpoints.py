"""Checkpoints of a run: written atomically, the last two kept, damaged ones skipped."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from patchcast.training.sharding import shared_like

KEPT = 2
NAME = re.compile(r"step=(\d+)\.ckpt")
PLANS = "2026-12"
"""Which rules plans are drawn by: see `patchcast.plans.earlier`."""
REST, FILES = "rest.ckpt", "files.json"
"""In the folder of a sharded checkpoint: all that is not sharded, and the checksums of its files."""
CHUNK = 2**24
"""Bytes whose checksum is computed at a time."""


@dataclass
class Checkpoint:
    """The state from which a run resumes.

    Attributes:
        step: optimizer steps done.
        model: the state dict of a `LossModule`; parameter names start with `pretrainer.`.
        optimizer: Adam's state of each parameter, by parameter name (in Lightning's checkpoints by number).
        stream: the position in the stream of batches.
        looks: the state of each `Look`, by class name.
        plans: version of the rules by which plans are drawn (`PLANS`); None in checkpoints from before December 2026.
        is_seen: whether the evaluation of this step is done.
        average: the averaged weights, by parameter name; None if there are none.
        is_lightnings: written by a version of patchcast that trained with Lightning's Trainer.
        shards: the folder of the sharded tensors, which are not yet in `model` and `optimizer`.
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
    shards: Path | None = None


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `step=N.ckpt`, and remove all but the latest two.

    Raises:
        OSError: if the disk is full; the partial file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step={checkpoint.step}.ckpt"
    partial = file.with_suffix(".partial")
    write(checkpoint, partial)
    if file.is_dir():  # a sharded one of the same step
        remove(file)
    partial.replace(file)
    remove_old(folder)


def write(checkpoint: Checkpoint, partial: Path) -> None:
    """Write one file.

    Raises:
        OSError: if the disk is full; the file is removed.
    """
    state = {
        **{name: value for name, value in vars(checkpoint).items() if name not in ("model", "shards")},
        "state_dict": _on_cpu(checkpoint.model),
        "average": None if checkpoint.average is None else _on_cpu(checkpoint.average),
        "optimizer": {name: _on_cpu(values) for name, values in checkpoint.optimizer.items()},
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


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() if isinstance(value, Tensor) else value for name, value in state.items()}


def remove_old(folder: Path) -> None:
    """Remove all checkpoints but the latest two."""
    for old in checkpoints(folder)[:-KEPT]:
        remove(old)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, a file or a folder, if it is there."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


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
            except (RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError, pickle.UnpicklingError):
                pass  # checksums do not cover the zip archive's own directory
        warnings.warn(f"{file} is damaged and is skipped", stacklevel=2)
    return None


def load(file: Path) -> Checkpoint:
    """Read a checkpoint, including those of versions that trained with Lightning's Trainer.

    Of a sharded one, only what is not sharded: `patchcast.training.shards.fill` reads the rest.

    Raises:
        RuntimeError, ValueError, KeyError: if the file is damaged; torch's reader may raise others.
    """
    if file.is_dir():
        return replace(load(file / REST), shards=file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    if "pytorch-lightning_version" not in state:
        names = Checkpoint.__dataclass_fields__.keys() - {"model", "shards"} - ({"average"} - state.keys())
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
    """The optimizer state by parameter name, for any number of devices."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in optimizer.state.items()}


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
    if checkpoint.is_dir():
        try:
            index = json.loads((checkpoint / FILES).read_text())
            return all(checksum(checkpoint / name) == value for name, value in index.items())
        except (OSError, ValueError, AttributeError):
            return False
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except Exception:  # a flipped bit can look like encryption, another compression or a size beyond memory
        return False


def checksum(file: Path) -> int:
    """CRC-32, as in zip archives."""
    value = 0
    with file.open("rb") as opened:
        while piece := opened.read(CHUNK):
            value = zlib.crc32(piece, value)
    return value


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])
