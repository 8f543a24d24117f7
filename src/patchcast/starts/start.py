"""`Start`: weights that were read and not yet loaded into a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEP = re.compile(r"target\.(targets\.\w+\.)?step")
"""The name of a moving average's counter: of the target itself, or of one of several."""


@dataclass(frozen=True)
class Start:
    """Weights that were read, under the names of the library that the encoder comes from.

    Attributes:
        words: the words as given.
        format: a description of the format that was read.
        encoder: weights by the names of timm's model or of `ImageGPT`, or by other names that timm's filters convert.
        parts: weights of a pretrainer's other parts, by its own names ("predictor.embed.weight").
        method: the method that trained the parts; None if there are none.
        method_args: its options, if the files name them.
        architecture: timm's or ImageGPT's name of the model, if the files name it.
        model_args: arguments to build the model with.
        size: height and width of its images, if the files name them; position tables are for this size.
        mean, std: normalization of its images, if the files name it.
        squash: True if images are resized whole to that size, whatever their shape, and not cropped.
        heads: number of attention heads, if the files name it; it cannot be inferred from shapes.
        eps: epsilon of its layer norms, if it differs from timm's.
        tokenizer: file or folder of the palette or codebook that it was trained with.
        has_computed_positions: True if its position table is computed and not in the file (AIM).
        left_out: names in the file that do not belong to an encoder.
    """

    words: str
    format: str
    encoder: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)
    method: str | None = None
    method_args: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    squash: bool = False
    heads: int | None = None
    eps: float | None = None
    tokenizer: Path | None = None
    has_computed_positions: bool = False
    left_out: tuple[str, ...] = ()

    def digest(self) -> str:
        """A hash of every weight: two starts with the same digest are the same."""
        total = hashlib.sha256()
        for name, weight in sorted({**self.encoder, **self.parts}.items()):
            total.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            total.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()[:32]
