"""Load a tokenizer from a file: a palette or a codebook, recognized by the file's content."""

from __future__ import annotations

from pathlib import Path

from patchcast.files import read_weights
from patchcast.tokenizers.palette import Palette
from patchcast.tokenizers.patches import PatchCodebook


def load_tokenizer(path: str | Path) -> Palette | PatchCodebook:
    """Read what `Palette.save` or `PatchCodebook.save` wrote, or OpenAI's colors (`.npy`).

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
    if path.suffix == ".safetensors":
        names = read_weights(path)
        if "colours" in names:
            return Palette.load(path)
        if "centres" in names:
            return PatchCodebook.load(path)
    raise ValueError(f"{path} holds neither a palette (.npy or .safetensors) nor a codebook (.safetensors)")
