"""ImageGPT one code at a time, for drawing: the same results with a third of the kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.activations import quick_gelu
from torch import Tensor, nn

from patchcast.backbones.imagegpt_network import ImageGPT
from patchcast.backbones.key_values import KeyValues
from patchcast.backbones.precision import precision

QUICK_GELU = 1.702
"""x * sigmoid(1.702 x) is silu(1.702 x) / 1.702."""


class Stepwise:
    """`head(network.extend(latest, cache))` for one new code of each image.

    Drawing one code runs a few rows through many small kernels, and their number determines the time. So constants are
    multiplied into the weights once: the norms' weights into the linear layers after them, and the quick GELU's factor
    into the layers around it. On a CPU the weights are also stored column by column, which makes products of a few rows
    up to 2.3 times as fast (16 rows, width 512). All this takes the memory of the weights a second time.

    >>> from patchcast.geometry import Grid
    >>> from patchcast.backbones.imagegpt_network import Cache
    >>> network, head = ImageGPT(Grid(2, 2), 5, depth=1, width=8, heads=2), nn.Linear(8, 5, bias=False)
    >>> cache, latest = Cache(network, 3), torch.zeros(3, 1, dtype=torch.long)
    >>> first = head(network.extend(latest, cache)[:, -1])
    >>> Stepwise(network, head)(latest, cache).shape
    torch.Size([3, 5])
    """

    @torch.no_grad()
    def __init__(self, network: ImageGPT, head: nn.Linear) -> None:
        self.codes, self.positions = network.codes.weight, network.positions
        self.blocks = [StepwiseBlock(block, network.size.width) for block in network.blocks]
        self.norm = FoldedNorm(network.norm, network.size.width)
        self.head = FoldedLinear(head, before=self.norm.weight)

    @torch.no_grad()
    def __call__(self, latest: Int[Tensor, "B 1"], cache: KeyValues) -> Float[Tensor, "B K"]:
        at = cache.length
        x = self.codes[latest[:, 0]] + self.positions[at]
        for step, memory in zip(self.blocks, cache.memory, strict=True):
            x = step(x, memory, at)
        cache.length = at + 1
        return self.head(self.norm(x))


class StepwiseBlock:
    """A block of ImageGPT for one position of each image."""

    def __init__(self, block: Any, width: int) -> None:
        self.heads = block.attn.heads
        self.attend = block.attn.attend
        self.norm1, self.norm2 = FoldedNorm(block.norm1, width), FoldedNorm(block.norm2, width)
        self.qkv = FoldedLinear(block.attn.qkv, before=self.norm1.weight)
        self.proj = FoldedLinear(block.attn.proj)
        factor = QUICK_GELU if block.mlp.act is quick_gelu else 1.0
        self.act = F.silu if block.mlp.act is quick_gelu else block.mlp.act
        self.fc1 = FoldedLinear(block.mlp.fc1, before=self.norm2.weight, after=factor)
        self.fc2 = FoldedLinear(block.mlp.fc2, before=1 / factor)

    def __call__(
        self, x: Float[Tensor, "B D"], memory: Float[Tensor, "2 B heads P d"], at: int
    ) -> Float[Tensor, "B D"]:
        qkv = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, 1, -1)
        memory[:, :, :, at : at + 1] = qkv[:, 1:].transpose(0, 1)
        keys, values = memory[:, :, :, : at + 1]
        mixed = self.attend(qkv[:, 0], keys, values)
        x = x + self.proj(mixed.flatten(1))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class FoldedNorm:
    """An RMS norm whose weight is folded into the next linear layer.

    x / sqrt(mean(x^2) + eps) is sqrt(width) x / hypot(|x|, sqrt(width eps)): three kernels, where torch's has twelve on
    a CPU.
    """

    def __init__(self, norm: nn.RMSNorm, width: int) -> None:
        assert norm.eps is not None
        self.weight = norm.weight * width**0.5
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)  # in half precision a norm is too coarse
        self.floor = torch.full((), (norm.eps * width) ** 0.5, device=norm.weight.device, dtype=dtype)

    def __call__(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.floor.dtype)
        return x / torch.hypot(length, self.floor)


class FoldedLinear:
    """A linear layer with constant factors of its inputs and outputs folded into the weight."""

    def __init__(self, linear: nn.Linear, before: Tensor | float = 1.0, after: float = 1.0) -> None:
        weight = linear.weight * before * after
        self.weight = weight.to(precision(weight))
        self.bias = None if linear.bias is None else (linear.bias * after).to(self.weight.dtype)
        if weight.device.type == "cpu":
            self.weight = self.weight.T.contiguous().T

    def __call__(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
