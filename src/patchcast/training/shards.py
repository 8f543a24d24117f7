"""Checkpoints of sharded weights: a folder to which every rank writes its part, read by any number of devices.

By torch.distributed.checkpoint, in safetensors: its own format has a pickled index, which could run code.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from patchcast.training import checkpoints
from patchcast.training.checkpoints import FILES, REST, Checkpoint


def save_shards(checkpoint: Checkpoint, folder: Path, group: dist.ProcessGroup | None) -> None:
    """Write `step=N.ckpt`, a folder, and remove all but the latest two. Every rank must call this.

    Args:
        group: of all ranks, on the CPU; None for one process.
    Raises:
        OSError: on every rank if the disk of one is full; what was written so far is removed.
    """
    rank = 0 if group is None else dist.get_rank()
    final = folder / f"step={checkpoint.step}.ckpt"
    partial = final.with_suffix(".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    if group is not None:
        dist.barrier(group)
    sharded, rest = _split(checkpoint)
    problem = None
    try:
        dcp.save(
            sharded, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True), process_group=group
        )
        own = {file.name: checkpoints.checksum(file) for file in partial.glob(f"shard-{rank + 1:05d}-*")}
        if rank == 0:
            checkpoints.write(rest, partial / REST)
            own[REST] = checkpoints.checksum(partial / REST)
    except CheckpointException as failure:
        own, problem = {}, next(iter(failure.failures.values()))[0]
    except OSError as failure:
        own, problem = {}, failure
    found: list[Any] = [(own, problem)]
    if group is not None:
        found = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, (own, problem), group=group)
    problem = next((one for _, one in found if one is not None), None)
    if rank == 0 and problem is None:
        index = {name: checksum for files, _ in found for name, checksum in files.items()}
        with (partial / FILES).open("w") as out:
            json.dump(index, out)
            out.flush()
            os.fsync(out.fileno())
        checkpoints.remove(final)
        partial.replace(final)
        checkpoints.remove_old(folder)
    if problem is not None:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise problem


def fill(checkpoint: Checkpoint, like: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """The checkpoint with the tensors of its folder; unchanged if it was a single file.

    Args:
        like: the model's state; where its tensors are sharded, each rank reads its own part only.
    """
    if checkpoint.shards is None:
        return checkpoint
    reader = HuggingFaceStorageReader(str(checkpoint.shards))
    tensors: dict[str, Any] = {}
    for key, info in reader.read_metadata().state_dict_metadata.items():
        own = (like or {}).get(key.rpartition("/")[2])
        is_sharded = isinstance(own, DTensor) and own.shape == info.size  # type: ignore[union-attr]
        tensors[key] = torch.empty_like(own) if is_sharded else torch.empty(info.size, dtype=info.properties.dtype)  # type: ignore[union-attr, arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    model, average = dict(checkpoint.model), dict(checkpoint.average or {})
    optimizer = {name: dict(state) for name, state in checkpoint.optimizer.items()}
    for key, value in tensors.items():
        kind, _, name = key.rpartition("/")
        if kind == "model":
            model[name] = value
        elif kind == "average":
            average[name] = value
        else:
            optimizer.setdefault(name, {})[kind.removeprefix("optimizer/")] = value
    averaged = None if checkpoint.average is None else average
    return replace(checkpoint, model=model, optimizer=optimizer, average=averaged, shards=None)


def weights_of(file: Path) -> dict[str, Any]:
    """The full model state of a checkpoint, a file or a folder, on the CPU."""
    return fill(checkpoints.load(file)).model


def _split(checkpoint: Checkpoint) -> tuple[dict[str, Any], Checkpoint]:
    """Sharded tensors by their names in the folder, and all else."""
    sharded: dict[str, Any] = {}

    def rest(kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
        sharded.update({f"{kind}/{name}": value for name, value in state.items() if isinstance(value, DTensor)})
        return {name: value for name, value in state.items() if not isinstance(value, DTensor)}

    model = rest("model", checkpoint.model)
    average = None if checkpoint.average is None else rest("average", checkpoint.average)
    moments: dict[str | int, dict[str, Any]] = {}
    for parameter, state in checkpoint.optimizer.items():
        moments[parameter] = {key: value for key, value in state.items() if not isinstance(value, DTensor)}
        sharded |= {f"optimizer/{key}/{parameter}": value for key, value in state.items() if isinstance(value, DTensor)}
    return sharded, replace(checkpoint, model=model, optimizer=moments, average=average)
