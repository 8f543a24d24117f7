"""Predictors: from the features of visible units to predictions. They do not depend on images or targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from timm.layers import GluMlp, LayerNorm2d, Mlp, RmsNorm, RmsNormFp32, SimpleNorm, SimpleNormFp32, SwiGLU
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, additive
from patchcast.geometry import Grid, take
from patchcast.plans import MaskPlan, Plan
from patchcast.positions import Positions
from patchcast.views import Context, read

GROUPS = 16
"""Of data2vec 2's convolutions."""


class Predictor(nn.Module):
    """`(context, plan) -> predictions`.

    Attributes:
        reads_hidden: whether it reads features at hidden units, which the view must then provide.
        reads_prefix: whether it reads the features of prefix tokens.
        plans: the kind of plan that it works with.
    """

    reads_hidden: bool
    reads_prefix: bool = False
    plans: type[Plan] = Plan

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        raise NotImplementedError

    def block_modules(self) -> list[nn.Module]:
        """Its blocks in the order in which they run; see `Backbone.block_modules`."""
        return []


class LinearHead(Predictor):
    """One linear layer on the feature of each prediction's position."""

    reads_hidden = True

    def __init__(self, width: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(width, outputs, bias=bias)

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        return self.project(read(context, plan.source))


class NoHead(Predictor):
    """The features are the predictions, for a target as wide as they are (NEPA).

    >>> from patchcast.plans import RasterOrder
    >>> plan, units = RasterOrder(random_prefix=False)(Grid(1, 3), 2), torch.randn(2, 3, 8)
    >>> torch.equal(NoHead()(Context(plan.grid, units[:, :0], units), plan)[:, 0], units[:, :-1])
    True
    """

    reads_hidden = True

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        return read(context, plan.source)


class NeighborHead(Predictor):
    """A few convolutions over the features of all units, hidden ones included.

    A linear head reads the feature of a hidden unit, which the backbone's attention must have filled from the others.
    Here each prediction also reads features up to `depth * (kernel // 2)` units away, because a network learns late
    where to attend to (`benchmarks/NOTES.md` has what it is worth).

    >>> from patchcast.plans import BlockMask
    >>> plan, units = BlockMask(0.4)(Grid(4, 6), 2), torch.randn(2, 24, 8)
    >>> head = NeighborHead(32, depth=2, embed=torch.nn.Linear(8, 32), head=torch.nn.Linear(32, 5), groups=4)
    >>> head(Context(plan.grid, units[:, :0], units), plan).shape[-1]
    5

    Args:
        width, depth, kernel, groups, embed, head: as of `ConvDecoder`.
    Raises:
        ValueError: likewise.
    """

    reads_hidden = True
    plans = MaskPlan

    def __init__(
        self, width: int, *, depth: int, embed: nn.Module, head: nn.Module, kernel: int = 3, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.embed, self.head = embed, head
        self.blocks = conv_layers(width, depth, kernel, groups)
        self.apply(xavier)

    def block_modules(self) -> list[nn.Module]:
        return [*self.blocks]

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        x = self.embed(context.units)
        if context.is_valid is not None:
            x = x.masked_fill(~context.is_valid[:, context.prefix.shape[1] :, None], 0.0)
        x = x.transpose(1, 2).unflatten(2, tuple(plan.grid))
        for block in self.blocks:
            x = x + block(x)
        return self.head(take(x.flatten(2).transpose(1, 2), plan.predict))


class MLPHead(Predictor):
    """AIM's head: residual MLP blocks on each feature separately (El-Nouby et al. 2024, section 3.2).

    A block is a transformer block whose attention is the identity: `x + norm1(x)`, then `x + mlp(norm2(x))`. Positions
    are added at the head's width. The paper's head is 2,048 wide and 12 blocks deep, whatever the trunk.

    Args:
        query: adds the position of the unit to predict, for orders in which it does not follow from the feature's
            position. The paper needs none: in raster order it is always the next unit.
    Raises:
        ValueError: if `depth` is not positive.
    """

    reads_hidden = True

    def __init__(
        self, width: int, outputs: int, *, grid: Grid, hidden: int, depth: int, query: TargetQuery | None = None
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"the head needs at least one block; got a depth of {depth}")
        self.embed = nn.Linear(width, hidden)
        self.positions = Positions(grid, hidden)
        self.query = query
        self.blocks = nn.ModuleList(ResidualMLP(hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.project = nn.Linear(hidden, outputs)
        self.apply(xavier)

    def block_modules(self) -> list[nn.Module]:
        return [*self.blocks]

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        x = self.embed(read(context, plan.source)) + self.positions(plan.grid)[plan.source]
        if self.query is not None:
            x = x + self.query(plan)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x))


class TargetQuery(nn.Module):
    """The position of the unit to predict, through a learned linear layer.

    If the order differs from image to image, the features do not determine which unit comes next. Without its position,
    a head could only predict the mean over all remaining units (Hua et al. 2022, section 3.2; Pannatier et al. 2024,
    section 2.1).

    >>> from patchcast.plans import RandomOrder
    >>> TargetQuery(Grid(2, 3), 8)(RandomOrder()(Grid(2, 3), 4)).shape
    torch.Size([4, 1, 5, 8])
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.positions = Positions(grid, width)
        self.project = nn.Linear(width, width)

    def forward(self, plan: Plan) -> Float[Tensor, "B G P D"]:
        return self.project(self.positions(plan.grid))[plan.predict]


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
    """The decoder of MAE and the predictor of I-JEPA: context tokens and mask tokens that attend to one another.

    The sequence is `[prefix, context at its positions, mask tokens at the positions to predict]`, once for each group
    of targets, and the last P outputs are the predictions (He et al. 2022, section 3; Assran et al. 2023, section 3).
    Prefix tokens have no position. Only visible units of the context are used, so the decoder works the same under
    every view.

    >>> from patchcast.geometry import Grid
    >>> from patchcast.plans import RandomMask
    >>> decoder = Decoder(
    ...     32, grid=Grid(4, 4), depth=1, heads=2, embed=torch.nn.Linear(8, 32), head=torch.nn.Linear(32, 5)
    ... )
    >>> plan = RandomMask(0.75)(Grid(4, 6), 2)  # another grid than the usual one: positions are computed for it
    >>> decoder(Context(plan.grid, torch.randn(2, 1, 8), torch.randn(2, 6, 8), plan.visible), plan).shape
    torch.Size([2, 1, 18, 5])

    Args:
        width: of the decoder's tokens.
        grid: the usual grid, whose positions are cached.
        embed: maps a feature of the backbone to `width`.
        head: maps `width` to the values of a unit. Both are initialized with the rest.
        drop_path: rate at which the last block is skipped in training, rising evenly from 0 at the first; or the rate
            of every block.
        norm_layer: of the blocks and of the final norm.
        block: any other argument of timm's `Block`: `qkv_bias`, `qk_norm`, `proj_bias`, `proj_drop`, `attn_drop`,
            `init_values`, `act_layer`, `mlp_layer`, `attn_layer`, ...
    Raises:
        ValueError: if `width` is not divisible by `heads` and by 4, `depth` is not positive, or `drop_path` has another
            number of rates.
        TypeError: if timm's `Block` has no such argument.
    """

    reads_hidden = False
    reads_prefix = True
    plans = MaskPlan

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
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: Callable[..., nn.Module] = partial(nn.LayerNorm, eps=1e-6),  # noqa: B008
        **block: Any,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the decoder's width must be divisible by its heads; got {width} and {heads}")
        if depth < 1:
            raise ValueError(f"the decoder needs at least one block; got a depth of {depth}")
        rates = torch.linspace(0, drop_path, depth).tolist() if isinstance(drop_path, float | int) else [*drop_path]
        if len(rates) != depth:
            raise ValueError(f"drop_path is one rate, or one for each block; got {len(rates)} for {depth} blocks")
        shared: dict[str, Any] = {"mlp_ratio": mlp_ratio, "norm_layer": norm_layer, "qkv_bias": True, **block}
        self.embed, self.head = embed, head
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = Positions(grid, width)
        kinds = [Block] * (depth - 1) + [LastBlock]
        self.blocks = nn.ModuleList(
            kind(width, heads, drop_path=rate, **shared) for kind, rate in zip(kinds, rates, strict=True)
        )
        self.norm = norm_layer(width)
        self.grad_checkpointing = False
        self.apply(xavier)

    def block_modules(self) -> list[nn.Module]:
        return [*self.blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations: timm's name for it."""
        self.grad_checkpointing = enable

    def forward(
        self, context: Context, plan: Plan, can_see: Bool[Tensor, "*BG L L"] | None = None
    ) -> Float[Tensor, "B G P T"]:
        """Predict the units of `plan.predict`.

        Args:
            can_see: True where the token of the row may attend to the token of the column, in the sequence of R prefix,
                V context and P mask tokens; (L, L) for all, or (B, G, L, L). None: no mask.
        """
        assert isinstance(plan, MaskPlan)
        at, units, is_valid = context.at, context.units, context.is_valid
        if at is None:
            at, units = plan.visible, take(units, plan.visible)
            if is_valid is not None:
                is_valid = seen_rows(is_valid, context.prefix.shape[1], plan)
        positions = self.positions(plan.grid)
        seen = torch.cat([self.embed(context.prefix), self.embed(units) + positions[at]], dim=1)
        queries = self.mask_token + positions[plan.predict]
        groups, predicted = plan.predict.shape[1:]
        x = torch.cat([seen[:, None].expand(-1, groups, -1, -1), queries.to(seen.dtype)], dim=2).flatten(0, 1)
        mask = can_see.flatten(0, 1)[:, None] if can_see is not None and can_see.ndim == 4 else can_see
        if is_valid is not None:
            mask = and_valid(mask, is_valid, plan)
        added = None if mask is None else additive(mask, x)
        for block in self.blocks[:-1]:
            x = checkpoint(block, x, attn_mask=added) if self.grad_checkpointing else block(x, attn_mask=added)
        last = partial(self.blocks[-1], attn_mask=added, last=predicted)
        x = checkpoint(last, x) if self.grad_checkpointing else last(x)
        return self.head(self.norm(x)).unflatten(0, (-1, groups))


class ConvDecoder(Predictor):
    """The convolutional decoder of data2vec 2 (Baevski et al. 2023, section 3).

    Visible features are placed on the grid of units, with a mask token at all other units, and a few grouped
    convolutions run over the grid. Each prediction sees `depth * (kernel // 2)` units in each direction. Prefix tokens
    are not used. Several groups of targets are predicted in one pass.

    >>> from patchcast.plans import RandomMask
    >>> decoder = ConvDecoder(32, depth=2, embed=torch.nn.Linear(8, 32), head=torch.nn.Linear(32, 5))
    >>> plan = RandomMask(0.75)(Grid(4, 6), 2)
    >>> decoder(Context(plan.grid, torch.randn(2, 1, 8), torch.randn(2, 6, 8), plan.visible), plan).shape
    torch.Size([2, 1, 18, 5])

    Args:
        width: channels.
        depth: residual layers, each a convolution, a norm over channels and GELU.
        embed: maps a feature of the backbone to `width`.
        head: maps `width` to the values of a unit.
        kernel: units per side of the kernel, odd.
        groups: of the convolutions.
    Raises:
        ValueError: if `width` is not divisible by `groups`, `kernel` is even, or `depth` is not positive.
    """

    reads_hidden = False
    plans = MaskPlan

    def __init__(
        self, width: int, *, depth: int, embed: nn.Module, head: nn.Module, kernel: int = 3, groups: int = GROUPS
    ) -> None:
        super().__init__()
        self.embed, self.head = embed, head
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.blocks = conv_layers(width, depth, kernel, groups)
        self.apply(xavier)

    def block_modules(self) -> list[nn.Module]:
        return [*self.blocks]

    def forward(self, context: Context, plan: Plan) -> Float[Tensor, "B G P T"]:
        assert isinstance(plan, MaskPlan)
        at, units, is_valid = context.at, context.units, context.is_valid
        prefix = context.prefix.shape[1]
        if at is None:
            at, units = plan.visible, take(units, plan.visible)
            if is_valid is not None:
                is_valid = seen_rows(is_valid, prefix, plan)
        if is_valid is not None:  # padding is written to one extra place, which is cut off
            at = torch.where(is_valid[:, prefix:], at, plan.grid.units)
        seen = self.embed(units)
        canvas = self.mask_token.to(seen.dtype).expand(len(seen), plan.grid.units + 1, -1)
        canvas = canvas.scatter(1, at[..., None].expand_as(seen), seen)[:, :-1]
        x = canvas.transpose(1, 2).unflatten(2, tuple(plan.grid))
        for block in self.blocks:
            x = x + block(x)
        return self.head(take(x.flatten(2).transpose(1, 2), plan.predict))


# Applied to each token separately, so the rows can be selected first.
NORMS = (RmsNorm, RmsNormFp32, SimpleNorm, SimpleNormFp32, nn.Identity, nn.LayerNorm, nn.RMSNorm)
MLPS = (GluMlp, Mlp, SwiGLU)


class LastBlock(Block):
    """timm's block if only the last rows of its output are needed: all tokens are keys, and only the last are queries.

    `block(x, last=p)` equals the plain block's output `[:, -p:]`. Everything except keys and values is computed for
    p tokens instead of L, which saves half of the block in I-JEPA's predictor. If the parts of the block are not timm's
    usual ones (other attention, an MLP or a norm over several tokens), the whole block is run.

    >>> block = LastBlock(24, 3, qkv_bias=False)
    >>> block(torch.zeros(1, 6, 24), last=2).shape
    torch.Size([1, 2, 24])
    """

    attn: Any

    def forward(  # type: ignore[override]  # it cannot stand for a plain block: it answers with fewer tokens
        self, x: Float[Tensor, "B L D"], attn_mask: Shaped[Tensor, "*b L L"] | None = None, *, last: int
    ) -> Float[Tensor, "B P D"]:
        if not self.is_row_by_row:
            return super().forward(x, attn_mask=attn_mask)[:, -last:]
        answer = x[:, -last:] + self.drop_path1(self.ls1(self.attend(self.norm1(x), attn_mask, last)))
        return answer + self.drop_path2(self.ls2(self.mlp(self.norm2(answer))))

    @property
    def is_row_by_row(self) -> bool:
        """Whether every part except timm's own attention works on each token separately."""
        if type(self.attn) is not Attention or type(self.mlp) not in MLPS:
            return False
        if getattr(self.attn, "gate", None) is not None:  # an older timm has no gates
            return False
        mlp: Any = self.mlp
        return all(isinstance(norm, NORMS) for norm in (self.norm1, self.norm2, self.attn.norm, mlp.norm))

    def attend(
        self, x: Float[Tensor, "B L D"], attn_mask: Shaped[Tensor, "*b L L"] | None, last: int
    ) -> Float[Tensor, "B P D"]:
        attention = self.attn
        queries, keys, values = self.project(x, last)
        rows = None if attn_mask is None else attn_mask[..., -last:, :]
        dropout = attention.attn_drop.p if self.training else 0.0
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=rows, dropout_p=dropout)
        return attention.proj_drop(attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2))))

    def project(self, x: Float[Tensor, "B L D"], last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, P, d) of the last tokens, and keys and values (B, heads, L, d) of all tokens."""
        qkv, heads = self.attn.qkv, self.attn.num_heads
        if type(qkv) is not nn.Linear:  # an adapter (LoRA) or a quantized layer computes more than its weight says
            queries, keys, values = qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            return queries[:, :, -last:], keys, values
        split = [qkv.out_features // 3, qkv.out_features * 2 // 3]
        weight = qkv.weight.split(split)
        bias = (None, None) if qkv.bias is None else qkv.bias.split(split)
        queries = F.linear(x[:, -last:], weight[0], bias[0]).unflatten(-1, (heads, -1)).transpose(1, 2)
        keys, values = F.linear(x, weight[1], bias[1]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        return queries, keys, values


def seen_rows(is_valid: Bool[Tensor, "B L"], prefix: int, plan: MaskPlan) -> Bool[Tensor, "B S"]:
    """For a context of all units: True for prefix tokens and units in `plan.visible` that are not padding."""
    seen = is_valid[:, prefix:].gather(1, plan.visible)
    return torch.cat([is_valid[:, :prefix], seen if plan.is_seen is None else seen & plan.is_seen], dim=1)


def and_valid(
    can_see: Bool[Tensor, "..."] | None, is_valid: Bool[Tensor, "B S"], plan: MaskPlan
) -> Bool[Tensor, "BG 1 L L"]:
    """The decoder's mask without padding in the context and in `plan.predict`."""
    predicted = torch.ones_like(plan.predict, dtype=torch.bool) if plan.is_asked is None else plan.is_asked
    column = torch.cat([is_valid[:, None].expand(-1, predicted.shape[1], -1), predicted], dim=2).flatten(0, 1)
    mask = column[:, None, None].expand(-1, -1, column.shape[1], -1)
    return mask if can_see is None else mask & can_see


def conv_layers(width: int, depth: int, kernel: int, groups: int) -> nn.ModuleList:
    """Layers of a convolution, a norm over channels and GELU, for residual use.

    Raises:
        ValueError: if `width` is not divisible by `groups`, `kernel` is even, or `depth` is not positive.
    """
    if width < 1 or width % groups:
        raise ValueError(f"the width of convolutions must be divisible by their groups; got {width} and {groups}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"the kernel must be an odd number of units; got {kernel}: give 3 or 5")
    if depth < 1:
        raise ValueError(f"convolutions need at least one layer; got a depth of {depth}")
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups),
            LayerNorm2d(width, eps=1e-6, affine=False),
            nn.GELU(),
        )
        for _ in range(depth)
    )


def head_for(
    backbone: Backbone, outputs: int, *, width: int | None = None, depth: int | None = None, kernel: int | None = None
) -> LinearHead | NeighborHead:
    """A head from a backbone's features to `outputs` values of each unit.

    >>> from patchcast.backbones import wrap
    >>> [type(head_for(wrap("test_vit"), 12, kernel=kernel)).__name__ for kernel in (None, 3)]
    ['LinearHead', 'NeighborHead']

    Args:
        width: of a `NeighborHead`. None: 128, or about the backbone's width if that is smaller.
        depth: its layers; None: 3.
        kernel: units per side of its kernel; None: a `LinearHead`, which has neither.
    Raises:
        ValueError: if a size is given without a kernel, or the head refuses it.
    """
    if kernel is None:
        given = {"head_width": width, "head_depth": depth}
        if named := [f"{name} {value}" for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{' and '.join(named)} is of a head of convolutions: give a head_kernel too, such as 3, or leave it "
                "out"
            )
        return LinearHead(backbone.width, outputs)
    width = usable_width(min(128, backbone.width)) if width is None else width
    embed, head = nn.Linear(backbone.width, width), nn.Linear(width, outputs)
    groups = gcd(width, GROUPS)
    return NeighborHead(
        width, depth=3 if depth is None else depth, kernel=kernel, groups=groups, embed=embed, head=head
    )


def decoder_for(
    backbone: Backbone,
    outputs: int,
    *,
    width: int | None = None,
    depth: int = 8,
    heads: int | None = None,
    kernel: int | None = None,
) -> Decoder | ConvDecoder:
    """A decoder from a backbone's features to `outputs` values of each unit.

    >>> from patchcast.backbones import wrap
    >>> type(decoder_for(wrap("test_vit"), 12, depth=2, kernel=3)).__name__
    'ConvDecoder'

    Args:
        width: None: 512, or about the backbone's width if that is smaller.
        depth: blocks or layers.
        heads: attention heads per block; None: heads of 32 channels.
        kernel: units per side of the kernel of a `ConvDecoder`; None: a `Decoder`, with attention.
    Raises:
        ValueError: if both `heads` and `kernel` are given, or the decoder refuses a size.
    """
    width = width or usable_width(min(512, backbone.width))
    embed, head = nn.Linear(backbone.width, width), nn.Linear(width, outputs)
    if kernel is None:
        grid, heads = backbone.grid(backbone.image_size), heads or max(1, width // 32)
        return Decoder(width, grid=grid, depth=depth, heads=heads, embed=embed, head=head)
    if heads is not None:
        raise ValueError(f"a convolutional decoder has no heads; got {heads} heads and a kernel of {kernel}")
    return ConvDecoder(width, depth=depth, kernel=kernel, groups=gcd(width, GROUPS), embed=embed, head=head)


def usable_width(wish: int) -> int:
    """The largest decoder width up to `wish` with heads of 32 channels; at least 32.

    >>> usable_width(200), usable_width(24)
    (192, 32)
    """
    return max(32, wish // 32 * 32)


def xavier(module: nn.Module) -> None:
    """MAE's initialization of linear layers, for `Module.apply`: Xavier uniform, with zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def small_normal(module: nn.Module) -> None:
    """The initialization of I-JEPA and BEiT, for `Module.apply`: normal with deviation 0.02, and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
