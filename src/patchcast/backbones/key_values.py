"""Keys and values of the places that a network has been through."""

from __future__ import annotations

import torch
from torch import Tensor

from patchcast.backbones.precision import precision


class KeyValues:
    """Keys and values of every block, in memory that is taken once.

    Attributes:
        memory: (depth, 2, batch, heads, places, channels of a head): keys and values.
        length: places filled.
    """

    def __init__(self, *, depth: int, heads: int, channels: int, batch: int, places: int, like: Tensor) -> None:
        self.memory = torch.empty(depth, 2, batch, heads, places, channels, device=like.device, dtype=precision(like))
        self.length = 0
