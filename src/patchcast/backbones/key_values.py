"""A cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from patchcast.backbones.precision import precision


class KeyValues:
    """Keys and values of every block, in memory that is allocated once.

    Attributes:
        memory: (depth, 2, batch, heads, places, channels of a head): keys and values.
        length: number of positions filled.
    """

    def __init__(self, *, depth: int, heads: int, channels: int, batch: int, places: int, like: Tensor) -> None:
        self.memory = torch.empty(depth, 2, batch, heads, places, channels, device=like.device, dtype=precision(like))
        self.length = 0
