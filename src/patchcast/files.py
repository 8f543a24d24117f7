"""Files: weights read without running code, files written whole or not at all, and the cache folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds: safetensors, or a file of `torch.save`, of which only plain values are read.

    >>> read_weights("nowhere.pth")
    Traceback (most recent call last):
    FileNotFoundError: there is no file nowhere.pth

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one sentence, if it is broken; or if it holds more than tensors and plain values, which would run
            code: none of it is run.
    """
    import torch  # here, so that writing a file needs no torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The papers' training scripts save their command-line arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise ValueError(
            f"{path} is broken, or holds more than tensors and plain values, which could run code: it is not read"
        ) from problem
    except Exception as problem:  # a broken file can raise nearly anything: zip's, struct's, safetensors' ...
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise ValueError(f"{path} cannot be read as weights: {reason}") from problem
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, and no weights by their names")
    return found


def cache_folder() -> Path:
    """Where what was made once is kept: `$XDG_CACHE_HOME/patchcast`, or `~/.cache/patchcast`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchcast"


def cache_file(what: Any, suffix: str) -> Path:
    """The file in the cache folder that belongs to `what` (anything that JSON can hold), whether it is there or not."""
    return cache_folder() / (hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32] + suffix)


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file under another name and then rename it: a broken process leaves nothing half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.stem}.{os.getpid()}{file.suffix}")
    try:
        write(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
