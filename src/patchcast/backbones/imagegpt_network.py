"""ImageGPT's network, and the backbone over it (Chen et al. 2020, "Generative Pretraining from Pixels")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.activations import quick_gelu
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, ImageBatch, Tokens, apply_blocks
from patchcast.backbones.key_values import KeyValues
from patchcast.geometry import Grid, take
from patchcast.tokenizers.base import Tokenizer


class NetworkSize(NamedTuple):
    """Blocks, channels and attention heads of a network."""

    depth: int
    width: int
    heads: int


IMAGEGPT_SIZES = {
    "S": NetworkSize(24, 512, 8),
    "M": NetworkSize(36, 1024, 8),
    "L": NetworkSize(48, 1536, 16),
    "XL": NetworkSize(60, 3072, 16),  # its heads were never published; 16 is our choice
}
"""Section 3.3 of the paper and its published code."""


def linear(x: Tensor) -> Tensor:
    return x


def gelu_10(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10, 10)


def laplace(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * 2**0.5)))


def relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def sqrtsoftplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


gelu_tanh = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": F.hardswish,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": linear,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": sqrtsoftplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""Parameter-free activations, by transformers' names; the first is the paper's."""


class Cache(KeyValues):
    """Keys and values of the positions that an ImageGPT has processed."""

    def __init__(self, network: ImageGPT, batch: int, places: int | None = None) -> None:
        depth, width, heads = network.size
        super().__init__(
            depth=depth, heads=heads, channels=width // heads, batch=batch, places=places or network.grid.units,
            like=network.positions,
        )  # fmt: skip


class Attention(nn.Module):
    """Fused multi-head self-attention, optionally with cached keys and values.

    Args:
        drop: dropout rate of the attention weights.
        proj_drop: dropout rate of the output.
        scale: factor of the attention logits; 1 / sqrt(head channels) if None.
        in_float32: compute logits and softmax in float32, even under autocast or in half precision.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool,
        *,
        drop: float = 0.0,
        proj_drop: float = 0.0,
        scale: float | None = None,
        in_float32: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.drop, self.scale, self.in_float32 = heads, drop, scale, in_float32
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        *,
        can_see: Bool[Tensor, "*B L S"] | None = None,
        is_causal: bool = False,
        memory: Float[Tensor, "2 B heads P d"] | None = None,
        at: int = 0,
    ) -> Float[Tensor, "B L D"]:
        qkv = self.split(x)
        q, kv = qkv[0], qkv[1:]
        if memory is not None:
            memory.narrow(3, at, x.shape[1]).copy_(kv)
            kv = memory.narrow(3, 0, at + x.shape[1])
        return self.merge(self.attend(q, kv[0], kv[1], can_see, is_causal=is_causal))

    def split(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "3 B heads L d"]:
        """Queries, keys and values."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def attend(
        self,
        q: Float[Tensor, "B heads L d"],
        k: Float[Tensor, "B heads S d"],
        v: Float[Tensor, "B heads S d"],
        mask: Bool[Tensor, "*B L S"] | Float[Tensor, "*B L S"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "B heads L d"]:
        """Attention of each query over the values. A mask that is not boolean is added to the logits."""
        drop = self.drop if self.training else 0.0
        if not self.in_float32:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_causal, dropout_p=drop, scale=self.scale
            )
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.float()
        with torch.autocast(q.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal, dropout_p=drop, scale=self.scale
            )
        return mixed.to(v.dtype)

    def weigh(
        self,
        q: Float[Tensor, "B heads L d"],
        k: Float[Tensor, "B heads S d"],
        mask: Float[Tensor, "*B L S"] | None = None,
    ) -> Float[Tensor, "B heads L S"]:
        """The attention weights, which `attend` never materializes; with dropout in training."""
        dtype, scale = q.dtype, q.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.in_float32:
            q, k = q.float(), k.float()
        with torch.autocast(q.device.type, enabled=False):
            products = scale * q @ k.transpose(-1, -2)
            weights = (products if mask is None else products + mask.to(q.dtype)).softmax(dim=-1)
        return F.dropout(weights.to(dtype), self.drop, self.training)

    def merge(self, mixed: Float[Tensor, "B heads L d"]) -> Float[Tensor, "B L D"]:
        """Concatenate the heads and project to the block's channels."""
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two linear layers with an activation between them; the paper's is the quick GELU, x * sigmoid(1.702 x)."""

    def __init__(
        self, width: int, hidden: int, bias: bool, *, act: Callable[[Tensor], Tensor] = quick_gelu, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return self.drop(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; the norm does not center and has no bias."""

    def __init__(self, width: int, attn: Attention, mlp: MLP, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=eps), nn.RMSNorm(width, eps=eps)
        self.attn, self.mlp = attn, mlp

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        *,
        can_see: Bool[Tensor, "*B L S"] | None = None,
        is_causal: bool = False,
        memory: Float[Tensor, "2 B heads P d"] | None = None,
        at: int = 0,
    ) -> Float[Tensor, "B L D"]:
        x = x + self.attn(self.norm1(x), can_see=can_see, is_causal=is_causal, memory=memory, at=at)
        return x + self.mlp(self.norm2(x))


class ImageGPT(nn.Module):
    """The network without its head: one feature for each input code.

    The causal network shifts its input by one position and puts a start token first: the feature at the position of
    code i has seen the codes before i, and predicts code i. The last code is never an input. The network of the paper's
    masked objective has no start token and no shift, and attends to all codes.

    >>> network = ImageGPT(Grid(8, 8), 16, depth=2, width=32, heads=4)
    >>> network(torch.zeros(3, 64, dtype=torch.long)).shape
    torch.Size([3, 64, 32])

    Args:
        grid: rows and columns of codes.
        vocabulary: number of codes.
        depth: number of blocks.
        width: channels.
        heads: attention heads; they divide the width.
        mlp_width: hidden channels of the MLPs; 4 times the width if None.
        causal: whether units are predicted one after the other.
        bias: whether linear layers have biases, as in transformers' version; the original has none.
        act: activation of the MLPs, one of `ACTIVATIONS`. This and all below are the options of transformers' version,
            with the paper's values as defaults.
        eps: of the norms.
        embed_drop, attn_drop, proj_drop: dropout rates of the input of the first block, of the attention weights, and
            of the outputs of attention and MLPs. There is no dropout when images are drawn.
        scale_attention: divide attention logits by the root of a head's channels.
        scale_by_depth: also divide them by the number of the block, counted from 1.
        attention_in_float32: compute logits and softmax in float32 in any precision.
    Raises:
        ValueError: if the heads do not divide the width, or there is no such activation.
    """

    def __init__(
        self,
        grid: Grid,
        vocabulary: int,
        *,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        causal: bool = True,
        bias: bool = False,
        act: str = "quick_gelu",
        eps: float = 1e-5,
        embed_drop: float = 0.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        scale_attention: bool = True,
        scale_by_depth: bool = False,
        attention_in_float32: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"ImageGPT's width must be divisible by its heads; got {width} and {heads}")
        if act not in ACTIVATIONS:
            raise ValueError(f"there is no activation {act!r}; there are {', '.join(ACTIVATIONS)}")
        self.grid, self.vocabulary, self.causal, self.bias = grid, vocabulary, causal, bias
        self.size = NetworkSize(depth, width, heads)
        self.mlp_width = mlp_width or 4 * width
        self.codes = nn.Embedding(vocabulary, width)
        self.start = nn.Parameter(torch.empty(width)) if causal else None
        self.positions = nn.Parameter(torch.empty(grid.units, width))
        self.act, self.eps, self.embed_drop = act, eps, nn.Dropout(embed_drop)
        self.attn_drop, self.proj_drop, self.attention_in_float32 = attn_drop, proj_drop, attention_in_float32
        self.scale_attention, self.scale_by_depth = scale_attention, scale_by_depth

        def block(number: int) -> Block:
            divisor = (width // heads) ** 0.5 if scale_attention else 1.0
            attn = Attention(
                width,
                heads,
                bias,
                drop=attn_drop,
                proj_drop=proj_drop,
                # torch computes the usual scale itself, and rounds it in its own way.
                scale=1 / (divisor * number) if scale_by_depth else None if scale_attention else 1.0,
                in_float32=attention_in_float32,
            )
            return Block(width, attn, MLP(width, self.mlp_width, bias, act=ACTIVATIONS[act], drop=proj_drop), eps)

        self.blocks = nn.ModuleList(block(number) for number in range(1, depth + 1))
        self.norm = nn.RMSNorm(width, eps=eps)
        self.grad_checkpointing = False
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published code's initialization: not transformers', and in the MLPs not scaled by depth."""
        depth, width, _ = self.size
        for weight, std in ((self.codes.weight, 0.02), (self.start, 0.02), (self.positions, 0.01)):
            if weight is not None:
                nn.init.normal_(weight, std=std)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "attn.qkv" in name:
                parameter.normal_(std=width**-0.5)
            elif "attn.proj" in name:
                parameter.normal_(std=(width * depth) ** -0.5)
            elif "mlp" in name:
                parameter.normal_(std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations: timm's name for it."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which block a parameter belongs to, as timm's models define it: for layer-wise learning rates."""
        return {"stem": r"^codes|^start|^positions", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        return {"codes.weight", "start", "positions"}

    def forward(self, ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """N may be smaller than the number of units: features of the first codes of images, with gradients."""
        return self.run(self.place(self.codes(ids)))

    def layers(self, ids: Int[Tensor, "B N"]) -> Iterator[Float[Tensor, "B N D"]]:
        """What the paper probes: the input of each block's attention, after its norm, and then the network's output.

        That is n^l of its section 2.2, for l = 0 to depth; not the residual stream itself.
        """
        x = self.place(self.codes(ids))
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.norm1(x)
            x = block(x, is_causal=self.causal)
        yield self.norm(x)

    @torch.no_grad()
    def extend(self, ids: Int[Tensor, "B L"], cache: Cache) -> Float[Tensor, "B P D"]:
        """Process more codes after those in a cache; returns the features of the new positions, without gradients.

        An empty cache starts with the start token: L codes then give L + 1 features, and L features later. The last
        feature predicts the next code.
        """
        assert self.start is not None, "only a causal network can process codes step by step"
        x = self.codes(ids)
        if cache.length == 0:
            x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
        at, end = cache.length, cache.length + x.shape[1]
        x = x + self.positions[at:end]
        # The causal mask of fused kernels starts at the first key: a later piece of several codes needs its own.
        is_first, is_piece = at == 0 and end > 1, at > 0 and end - at > 1
        can_see = torch.ones(end - at, end, dtype=torch.bool, device=x.device).tril(at) if is_piece else None
        for layer, block in enumerate(self.blocks):
            x = block(x, can_see=can_see, is_causal=is_first, memory=cache.memory[layer], at=at)
        cache.length = end
        return self.norm(x)

    def place(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """From embedded codes to the first block's input: shifted after the start token if causal, with positions."""
        if self.start is not None:
            x = torch.cat([self.start.expand(x.shape[0], 1, -1).to(x.dtype), x[:, :-1]], dim=1)
        return self.embed_drop(x + self.positions[: x.shape[1]])

    def run(
        self, x: Float[Tensor, "B L D"], *, can_see: Bool[Tensor, "*B L L"] | None = None, is_causal: bool = False
    ) -> Float[Tensor, "B L D"]:
        """Blocks and final norm, with a causal mask in the causal network."""
        return self.norm(apply_blocks(self.blocks, x, self, can_see=can_see, is_causal=is_causal or self.causal))


class ImageGPTBackbone(Backbone):
    """ImageGPT as a backbone: a tokenizer turns images into codes, and each code is a unit.

    >>> from patchcast.tokenizers.palette import Palette
    >>> network = ImageGPT(Grid(4, 4), 3, depth=1, width=8, heads=2)
    >>> backbone = ImageGPTBackbone(network, Palette(torch.tensor([[-1.0], [0.0], [1.0]])), channels=1)
    >>> backbone.units(torch.zeros(2, 1, 4, 4)).shape, sorted(backbone.can)
    (torch.Size([2, 16, 8]), ['paint', 'shift'])

    Args:
        model: the network, with the tokenizer's number of codes.
        tokenizer: a palette, or any other tokenizer.
        channels: of the images.
        stride: pixels per side of a unit, (rows, cols). A palette gives each pixel a code.
    Raises:
        ValueError: if network and tokenizer differ in their number of codes.
    """

    model: ImageGPT
    takes_integers = True

    def __init__(
        self, model: ImageGPT, tokenizer: Tokenizer, *, channels: int, stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__(model)
        if model.vocabulary != tokenizer.vocabulary:
            raise ValueError(
                f"the network has {model.vocabulary} codes and the tokenizer {tokenizer.vocabulary}; they must agree"
            )
        self.can = frozenset({"shift", "paint"} if model.causal else {"drop", "attend", "replace", "paint"})
        self.tokenizer = tokenizer
        self.width = self.embed_width = model.size.width
        self.stride, self.channels = stride, channels
        self.image_size = (model.grid.rows * stride[0], model.grid.cols * stride[1])

    def to_patches(self, images: ImageBatch) -> Tokens:
        assert isinstance(images, Tensor)
        return Tokens(self.model.codes(self.tokenizer.encode(images)), self.grid(images))

    def add_positions(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model.place(patches.x))

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        return self.model.run(tokens.x, **tokens.block_kwargs)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        return tokens.with_(x=take(tokens.x, visible), visible=visible)

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        return tokens.with_(block_kwargs={"is_causal": True} if can_see is None else {"can_see": can_see})

    def layers(self, images: ImageBatch) -> Iterator[Float[Tensor, "B N D"]]:
        """The features of each layer, as the paper probes them: see `ImageGPT.layers`.

        Raises:
            ValueError: if the image does not fit the network.
        """
        self.grid(images)
        assert isinstance(images, Tensor)
        return self.model.layers(self.tokenizer.encode(images))
