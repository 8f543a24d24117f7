"""Predictors: from what was seen to what was not. They know nothing of images or targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from patchcast.backbones.base import Grid
from patchcast.plans import Plan
from patchcast.positions import Positions
from patchcast.views import Context, read


class Predictor(nn.Module):
    """`(context, plan) -> predictions`.

    Attributes:
        reads_hidden: whether it reads the context at the place of hidden units, which the view must then hold.
    """

    reads_hidden: bool

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        raise NotImplementedError


class LinearHead(Predictor):
    """One linear map of the feature at the place of each prediction."""

    reads_hidden = True

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, outputs)

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        return self.project(read(context, plan.source))


class MLPHead(Predictor):
    """AIM's head: residual MLP blocks on each feature by itself (El-Nouby et al. 2024, section 3.2).

    A block is a transformer block whose attention is the identity: `x + norm1(x)`, then `x + mlp(norm2(x))`. Positions
    are added at the head's width. The paper's head is 2,048 wide and 12 blocks deep, whatever the trunk.
    """

    reads_hidden = True

    def __init__(self, width: int, outputs: int, *, grid: Grid, hidden: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, hidden)
        self.positions = Positions(grid, hidden)
        self.blocks = nn.ModuleList(ResidualMLP(hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.project = nn.Linear(hidden, outputs)

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        x = self.embed(read(context, plan.source)) + self.positions(plan.grid)[plan.source]
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x))


class ResidualMLP(nn.Module):
    """A pre-norm transformer block with the identity for attention, without biases as in AIM."""

    def __init__(self, width: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio), bias=False)
        self.fc2 = nn.Linear(int(width * mlp_ratio), width, bias=False)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        x = x + self.norm1(x)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Decoder(Predictor):
    """The masked decoder of MAE and I-JEPA: context tokens and mask tokens, attending to one another.

    In gather form, which serves both: the sequence is `[prefix, context at its positions, mask tokens at the positions
    to predict]`, once for each group of targets, and the last P outputs are the predictions (He et al. 2022,
    section 3; Assran et al. 2023, section 3).

    Args:
        width: of the decoder's tokens.
        embed: maps a feature of the backbone to `width`.
        head: maps `width` to the values of a unit.
    """

    reads_hidden = False

    def __init__(
        self,
        width: int,
        *,
        grid: Grid,
        depth: int,
        heads: int,
        embed: nn.Module,
        head: nn.Module,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the decoder's width must be divisible by its heads; got {width} and {heads}")
        self.embed, self.head = embed, head
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = Positions(grid, width)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width)

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        positions = self.positions(plan.grid)
        groups, asked = plan.predict.shape[1:]
        units = self.embed(context.units) + (positions if context.at is None else positions[context.at])
        seen = torch.cat([self.embed(context.prefix), units], dim=1)
        queries = self.mask_token + positions[plan.predict]
        x = torch.cat([seen[:, None].expand(-1, groups, -1, -1), queries.to(seen.dtype)], dim=2).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -asked:])).unflatten(0, (-1, groups))
