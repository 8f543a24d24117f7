"""Images that are codes already."""

from __future__ import annotations

from jaxtyping import Int, Int64
from torch import Tensor, nn


class Encoded(nn.Module):
    """Takes codes for images, (B, 1, rows, cols) of any integer type: how a network is trained on a `CodeSet`.

    >>> import torch
    >>> Encoded(512).encode(torch.tensor([[[[5, 511], [0, 7]]]])).tolist()
    [[5, 511, 0, 7]]
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def encode(self, images: Int[Tensor, "B 1 rows cols"]) -> Int64[Tensor, "B N"]:
        if images.dtype.is_floating_point:
            raise ValueError(f"codes are whole numbers; got {images.dtype} (encode images with their own tokenizer)")
        return images.flatten(1).long()
