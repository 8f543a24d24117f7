"""Tiles: cut images into them, put them together again, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from patchcast.geometry import Grid


def tile_crop(image: Num[Tensor, "*B C H W"], tile: tuple[int, int]) -> Num[Tensor, "*B T C h w"]:
    """Cut images into tiles, row by row.

    >>> tiles = tile_crop(torch.arange(8).view(1, 2, 4), (2, 2))
    >>> tiles.shape, tiles[1].tolist()
    (torch.Size([2, 1, 2, 2]), [[[2, 3], [6, 7]]])

    Args:
        tile: its height and width in pixels.
    Raises:
        ValueError: if the tiles do not divide the image.
    """
    grid = tiles_of(image.shape[-2:], tile)
    x = image.unflatten(-1, (grid.cols, tile[1])).unflatten(-3, (grid.rows, tile[0]))  # ... C rows h cols w
    return x.movedim((-4, -2), (-5, -4)).flatten(-5, -4)


def assemble(tiles: Num[Tensor, "*B T C h w"], grid: Grid) -> Num[Tensor, "*B C H W"]:
    """Put tiles together again: the inverse of `tile_crop`.

    >>> image = torch.rand(3, 4, 6)
    >>> torch.equal(assemble(tile_crop(image, (2, 2)), Grid(2, 3)), image)
    True

    Raises:
        ValueError: if the number of tiles is not that of the grid.
    """
    if tiles.shape[-4] != grid.units:
        raise ValueError(f"a grid of {grid} has {grid.units} tiles; got {tiles.shape[-4]}")
    x = tiles.unflatten(-4, tuple(grid)).movedim((-5, -4), (-4, -2))  # ... C rows h cols w
    return x.flatten(-2, -1).flatten(-3, -2)


def tiles_of(size: Sequence[int], tile: tuple[int, int]) -> Grid:
    """The grid of tiles of an image of this (height, width).

    Raises:
        ValueError: if the tiles do not divide it.
    """
    (height, width), (down, right) = size, tile
    if height % down or width % right or not height or not width:
        raise ValueError(
            f"tiles of {down}x{right} need H and W divisible by {down} and {right}; got {height}x{width} "
            "(resize_with_padding fits an image to a canvas of whole tiles)"
        )
    return Grid(height // down, width // right)


@dataclass(frozen=True)
class Places:
    """The row and column of each tile in its image; b = 1 if they are the same for all images.

    Attributes:
        is_real: False where a tile is padding; None if none is.
    """

    rows: Int[Tensor, "b T"]
    cols: Int[Tensor, "b T"]
    is_real: Bool[Tensor, "B T"] | None = None

    @classmethod
    def on(cls, tiles: Grid, device: torch.device | None = None) -> Places:
        """The places of a whole grid of tiles, row by row.

        >>> Places.on(Grid(2, 2)).cols.tolist()
        [[0, 1, 0, 1]]
        """
        place = torch.arange(tiles.units, device=device)[None]
        return cls(place // tiles.cols, place % tiles.cols)

    @classmethod
    def listed(cls, tile_grid: Int[Tensor, "b 2"], tiles: int) -> Places:
        """The places of tiles listed row by row, followed by padding, given each image's (rows, columns).

        >>> places = Places.listed(torch.tensor([[2, 1], [1, 3]]), 3)
        >>> places.rows.tolist(), places.is_real.tolist()
        ([[0, 1, 0], [0, 0, 0]], [[True, True, False], [True, True, True]])
        """
        place = torch.arange(tiles, device=tile_grid.device)
        across = tile_grid[:, 1:].clamp(min=1)
        is_real = place < tile_grid.prod(dim=1, keepdim=True)
        row, col = place // across, place % across
        return cls(torch.where(is_real, row, 0), torch.where(is_real, col, 0), is_real)

    def real(self, x: Float[Tensor, "b T *rest"]) -> Float[Tensor, "B T *rest"]:
        """`x` with zeros for padded tiles."""
        if self.is_real is None:
            return x
        return x * self.is_real.view(*self.is_real.shape, *[1] * (x.ndim - 2)).to(x.dtype)
