"""What a tokenizer is: images to one code for each unit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Int, Real
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Anything that gives each unit of an image a code: a palette, a codebook of patches, a VQ encoder of yours.

    Attributes:
        vocabulary: how many codes there are: 0 to `vocabulary` - 1.
    """

    vocabulary: int

    def encode(self, images: Real[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The code of every unit, row by row, on the grid of the backbone that learns to predict them."""
        ...
