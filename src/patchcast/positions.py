"""Fixed two-dimensional sine-cosine positions, in the layout of MAE and AIM."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from patchcast.geometry import Grid


def sincos_positions(grid: Grid, width: int) -> Float[Tensor, "N D"]:
    """Positions of every unit, row by row: `[sin(col), cos(col), sin(row), cos(row)]`, a quarter of `width` each.

    >>> sincos_positions(Grid(2, 3), 4).mul(100).round().int().tolist()[4]  # row 1, column 1
    [84, 54, 84, 54]

    Raises:
        ValueError: if `width` is not divisible by four.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4; got {width}")
    quarters = build_sincos2d_pos_embed(list(grid), dim=width).chunk(4, dim=-1)
    return torch.cat([quarters[i] for i in (1, 3, 0, 2)], dim=-1)  # timm has the same four parts in another order


def sincos_width(wish: int) -> int:
    """The largest width up to `wish` that sine-cosine positions can have.

    >>> sincos_width(386)
    384
    """
    return max(4, wish // 4 * 4)


class Positions(nn.Module):
    """Sine-cosine positions of any grid. Those of the usual grid are cached and move with the module.

    >>> Positions(Grid(2, 2), 8)(Grid(3, 5)).shape
    torch.Size([15, 8])
    """

    table: Tensor

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.register_buffer("table", sincos_positions(grid, width), persistent=False)

    def add(self, grid: Grid) -> None:
        """Cache those of another grid too: they would else be computed, and copied to the device, at every call."""
        if grid != self.grid:
            self.register_buffer(_name(grid), sincos_positions(grid, self.width).to(self.table), persistent=False)

    def forward(self, grid: Grid) -> Float[Tensor, "N D"]:
        table = self.table if grid == self.grid else self._buffers.get(_name(grid))
        return sincos_positions(grid, self.width).to(self.table) if table is None else table


def _name(grid: Grid) -> str:
    return f"table_{grid.rows}x{grid.cols}"
