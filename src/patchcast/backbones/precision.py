"""The dtype of matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def precision(like: Tensor) -> torch.dtype:
    """The dtype of products with this tensor: autocast's if it is on, else the tensor's own.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     precision(torch.zeros(1))
    torch.bfloat16
    """
    is_auto = not like.is_meta and torch.is_autocast_enabled(like.device.type)
    return torch.get_autocast_dtype(like.device.type) if is_auto else like.dtype
