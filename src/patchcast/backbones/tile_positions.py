"""Positions of tiles, learnt and gated: where a tile lies in its image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.tile_geometry import Places
from patchcast.geometry import Grid


class TilePositions(nn.Module):
    """A vector for each place of a tile, the same for all of its tokens: `tanh(gate) * positions[row, col]`.

    The gate starts at 0, so that a pretrained backbone first sees each tile as it knows it. Until it opens, no gradient
    reaches the table.

    >>> added = TilePositions(Grid(2, 3), 8)(Places.on(Grid(2, 2)))
    >>> added.shape, bool((added == 0).all())
    (torch.Size([1, 4, 8]), True)

    Args:
        grid: the most tiles an image can have, in rows and columns.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(*grid, width) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, places: Places) -> Float[Tensor, "B T D"]:
        return places.real(self.positions[places.rows, places.cols]) * self.gate.tanh()


class TokenPositions(nn.Module):
    """A vector for each token of each tile, mixed with those that are the same in every tile.

    The backbone adds its own positions, the local ones; what is returned turns them into
    `(1 - tanh(gate)) * local + tanh(gate) * positions[row, col]`. A padded tile has no global ones. The gate starts at
    0: the local ones alone.

    >>> TokenPositions(Grid(2, 3), tokens=5, width=8)(Places.on(Grid(1, 2)), torch.zeros(5, 8)).shape
    torch.Size([1, 2, 5, 8])

    Args:
        grid: the most tiles an image can have, in rows and columns.
        tokens: of one tile, prefix tokens first.
    """

    def __init__(self, grid: Grid, *, tokens: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(*grid, tokens, width) * width**-0.5)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, places: Places, local: Float[Tensor, "L D"] | None) -> Float[Tensor, "B T L D"]:
        added = places.real(self.positions[places.rows, places.cols])
        return (added if local is None else added - local) * self.gate.tanh()
