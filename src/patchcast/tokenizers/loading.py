"""Load a tokenizer from a file: a palette or a codebook, recognized by the file's content."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from patchcast.files import read_weights
from patchcast.tokenizers.palette import Palette
from patchcast.tokenizers.patches import PatchCodebook


def load_tokenizer(path: str | Path) -> Palette | PatchCodebook:
    """Read what `Palette.save` or `PatchCodebook.save` wrote, OpenAI's colors (`.npy`), or the palette of
    transformers' ImageGPT (`preprocessor_config.json`).

    >>> import torch
    >>> file = getfixture("tmp_path") / "grays.safetensors"
    >>> Palette(torch.tensor([[-1.0], [1.0]])).save(file)
    >>> load_tokenizer(file)
    Palette(2 colors, 1 channels)

    Raises:
        ValueError: if there is no such file, or it holds neither.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; a tokenizer is a palette or a codebook that was saved")
    if path.suffix == ".npy":
        return Palette.load(path)
    if path.suffix == ".json":
        return palette_of_processor(path)
    if path.suffix == ".safetensors":
        names = read_weights(path)
        if "colours" in names:
            return Palette.load(path)
        if "centres" in names:
            return PatchCodebook.load(path)
    raise ValueError(f"{path} holds neither a palette (.npy or .safetensors) nor a codebook (.safetensors)")


def palette_of_processor(file: Path) -> Palette:
    """The palette in the `preprocessor_config.json` of transformers' ImageGPT; one channel if it is of grays.

    Raises:
        ValueError: if it has none.
    """
    try:
        clusters = json.loads(file.read_text(encoding="utf-8")).get("clusters") if file.exists() else None
    except ValueError as problem:
        raise ValueError(f"{file} cannot be read as JSON: {problem}") from problem
    if clusters is None:
        raise ValueError(f"{file.parent} has no palette (clusters in {file.name}); give a tokenizer")
    colors = torch.tensor(clusters, dtype=torch.float32)
    is_gray = bool((colors == colors[:, :1]).all())
    return Palette(colors[:, :1] if is_gray else colors)
