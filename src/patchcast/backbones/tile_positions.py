"""Learned, gated positions of tiles in their image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.tile_geometry import Places
from patchcast.geometry import Grid


class TilePositions(nn.Module):
    """A vector for each tile position, the same for all tokens of a tile: `tanh(gate) * positions[row, col]`.

    The gate starts at 0, so that a pretrained backbone first sees each tile as a plain image. While it is 0, no
    gradient reaches the table.

    >>> added = TilePositions(Grid(2, 3), 8)(Places.on(Grid(2, 2)))
    >>> added.shape, bool((added == 0).all())
    (torch.Size([1, 4, 8]), True)

    Args:
        grid: maximum number of tiles of an image, in rows and columns.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(*grid, width) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, places: Places) -> Float[Tensor, "B T D"]:
        return places.real(self.positions[places.rows, places.cols]) * self.gate.tanh()


class TokenPositions(nn.Module):
    """A vector for each token of each tile, mixed with the positions that are the same in every tile.

    The backbone adds its own positions (local). The output turns them into
    `(1 - tanh(gate)) * local + tanh(gate) * positions[row, col]`. A padded tile gets no global positions. The gate
    starts at 0: local positions only.

    >>> TokenPositions(Grid(2, 3), tokens=5, width=8)(Places.on(Grid(1, 2)), torch.zeros(5, 8)).shape
    torch.Size([1, 2, 5, 8])

    Args:
        grid: maximum number of tiles of an image, in rows and columns.
        tokens: number of tokens of one tile, prefix tokens included.
    """

    def __init__(self, grid: Grid, *, tokens: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(*grid, tokens, width) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, places: Places, local: Float[Tensor, "L D"] | None) -> Float[Tensor, "B T L D"]:
        added = places.real(self.positions[places.rows, places.cols])
        return (added if local is None else added - local) * self.gate.tanh()
