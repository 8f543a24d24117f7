"""Reading files of weights without running anybody's code."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


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
