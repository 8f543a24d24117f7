"""Grids of units, and indexing of tensors by unit. Imports only torch, because plans, data and pictures use it too."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num, Real
from torch import Tensor

Layout = Literal["NLC", "NHWC", "NCHW"]


class Grid(NamedTuple):
    """Rows and columns of units (or of tokens).

    >>> Grid(14, 14).units
    196
    """

    rows: int
    cols: int

    @property
    def units(self) -> int:
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


def upsample(is_hidden: Bool[Tensor, "B rows cols"], size: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    """A mask of units at a finer resolution.

    >>> upsample(torch.tensor([[[True, False]]]), (2, 4)).int().tolist()
    [[[1, 1, 0, 0], [1, 1, 0, 0]]]
    """
    return F.interpolate(is_hidden[:, None].to(torch.float32), size=size, mode="nearest")[:, 0] > 0.5


def valid_share(is_valid: Bool[Tensor, "B H W"], stride: tuple[int, int]) -> Float[Tensor, "B N"]:
    """The share of each unit's pixels that have data, row by row: a weight for each unit (`Pretrainer.forward`).

    >>> valid_share(torch.tensor([[[True, True, False, False], [True, False, False, False]]]), (2, 2)).tolist()
    [[0.75, 0.0]]
    """
    return F.avg_pool2d(is_valid[:, None].float(), stride).flatten(1)


def paint(
    images: Real[Tensor, "B C H W"], is_hidden: Bool[Tensor, "B rows cols"], value: float = 0.0
) -> Real[Tensor, "B C H W"]:
    """The images with the pixels of hidden units set to `value` (0 is the mean of normalized images)."""
    return images.masked_fill(upsample(is_hidden, (images.shape[-2], images.shape[-1]))[:, None], value)


def put(
    x: Float[Tensor, "B ..."], hidden: Bool[Tensor, "B rows cols"], token: Float[Tensor, " E"] | None, layout: Layout
) -> Float[Tensor, "B ..."]:
    """`x` with `token` (zeros if None) wherever `hidden` is True."""
    token = x.new_zeros(x.shape[1 if layout == "NCHW" else -1]) if token is None else token.to(x.dtype)
    if layout == "NLC":
        return torch.where(hidden.flatten(1)[..., None], token, x)
    if layout == "NHWC":
        return torch.where(hidden[..., None], token, x)
    return torch.where(hidden[:, None], token[:, None, None], x)


def to_rows(x: Float[Tensor, "B ..."], layout: Layout) -> Float[Tensor, "B L D"]:
    """Features of any layout as one row per unit.

    >>> to_rows(torch.zeros(2, 8, 3, 4), "NCHW").shape
    torch.Size([2, 12, 8])
    """
    if layout == "NCHW":
        return x.flatten(2).transpose(1, 2)
    return x.flatten(1, 2) if layout == "NHWC" else x


def take(x: Num[Tensor, "B N D"], index: Int[Tensor, " B *K"]) -> Num[Tensor, "B *K D"]:
    """Rows of each batch element by index, for an index of any shape.

    >>> take(torch.arange(6.).view(1, 3, 2), torch.tensor([[[2, 0]]])).tolist()
    [[[[4.0, 5.0], [0.0, 1.0]]]]
    """
    rows = index.flatten(1)
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1])).unflatten(1, index.shape[1:])
