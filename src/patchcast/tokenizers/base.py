"""What a tokenizer is: images to one code for each unit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, Real
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Anything that gives each unit of an image a code: a palette, a codebook of patches, a VQ encoder of yours.

    Attributes:
        vocabulary: how many codes there are: 0 to `vocabulary` - 1.
    """

    @property
    def vocabulary(self) -> int: ...

    def encode(self, images: Real[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The code of every unit, row by row, on the grid of the backbone that learns to predict them."""
        ...


@runtime_checkable
class Draws(Protocol):
    """A tokenizer whose codes stand for pixels, so that predictions of them can be drawn: a palette, a codebook.

    Attributes:
        from_image: what `draw` takes from the images themselves, in words; for the caption of a picture.
    """

    from_image: str

    def draw(self, ids: Int[Tensor, "B N"], images: Real[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels that codes of every unit stand for, in the scale of floating-point images."""
        ...
