"""The interfaces of tokenizers, which map images to one code per unit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, Real
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Anything that gives each unit of an image a code: a palette, a codebook of patches, your own VQ encoder.

    Attributes:
        vocabulary: number of codes, which are 0 to `vocabulary` - 1.
    """

    @property
    def vocabulary(self) -> int: ...

    def encode(self, images: Real[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The code of every unit, row by row, on the grid of the backbone that predicts them."""
        ...


@runtime_checkable
class DrawingTokenizer(Protocol):
    """A tokenizer whose codes can be drawn as pixels: a palette, a codebook.

    Attributes:
        from_image: what `draw` takes from the images themselves, as text for the caption of a picture.
    """

    from_image: str

    def draw(self, ids: Int[Tensor, "B N"], images: Real[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels of the codes of every unit, in the range of floating-point images."""
        ...


Draws = DrawingTokenizer
"""The earlier name of `DrawingTokenizer`."""
