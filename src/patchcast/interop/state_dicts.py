"""Load state dicts without losing weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.files import read_weights
from patchcast.geometry import Grid
from patchcast.positions import sincos_positions

NAMES = ("model.safetensors", "pytorch_model.bin")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder that transformers wrote: one file or several, safetensors or pickle (weights only).

    Raises:
        FileNotFoundError: if there are none, or a file of several is missing.
        ValueError: if a file is broken, or the index names a file outside of the folder.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            places: dict[str, str] = json.loads(index.read_text())["weight_map"]
            if outside := [file for file in places.values() if Path(file).name != file]:
                raise ValueError(f"{index} names {outside[0]!r}, which is not in its own folder")
            files = {file: read_weights(folder / file) for file in sorted(set(places.values()))}
            return {name: files[file][name] for name, file in places.items()}
    raise FileNotFoundError(f"{folder} holds no {' or '.join(NAMES)}, whole or in several files")


def without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.` of DistributedDataParallel from names."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str, fresh: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly, except parameters whose names begin with one of `fresh`.

    Raises:
        ValueError: if a name is missing or unexpected, or a shape differs; nothing is loaded then.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(fresh)]
    homeless = [name for name in state if name not in own]
    misshapen = [name for name in state if name in own and own[name].shape != state[name].shape]
    complaints = []
    if missing:
        complaints.append(f"it lacks {_few(missing)}")
    if homeless:
        complaints.append(f"there is no place for {_few(homeless)}")
    if misshapen:
        name = misshapen[0]
        shapes = f"{tuple(state[name].shape)} in it, {tuple(own[name].shape)} here"
        complaints.append(f"shapes differ for {_few(misshapen)} ({name}: {shapes})")
    if complaints:
        raise ValueError(f"{source} does not fit: {'; '.join(complaints)}")
    module.load_state_dict(dict(state), strict=False)


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def fit_positions(state: dict[str, Tensor], backbone: Backbone) -> None:
    """Resample a timm encoder's `pos_embed` in place, from a square grid to the backbone's."""
    own, given = backbone.model.state_dict().get("pos_embed"), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape:
        return
    grid = backbone.grid(backbone.image_size)
    prefix = own.shape[1] - grid.units
    if isqrt(given.shape[1] - prefix) ** 2 == given.shape[1] - prefix:  # otherwise it has other prefix tokens
        state["pos_embed"] = resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)


def check_positions(table: Tensor | None, source: str) -> None:
    """Raise an error for decoder positions that are not sine-cosine: our decoder computes those and ignores others."""
    if table is None:
        return
    side = isqrt(table.shape[1])
    expected = sincos_positions(Grid(side, side), table.shape[2])
    off = (table[0, -expected.shape[0] :].float() - expected).abs().max().item()
    if off > 1e-2:  # half precision differs by less than 1e-3
        raise ValueError(
            f"{source} has decoder positions that differ by up to {off:.2f} from the sine-cosine ones; "
            "models begun by transformers 5.23 have zeros there"
        )


def heads(backbone: Backbone) -> tuple[str, ...]:
    """Names in a pretrainer's state dict that no feature depends on: a checkpoint may lack them."""
    return tuple(f"backbone.model.{name}" for name in backbone.unused())
