"""What every backbone is: `embed` an image into tokens, run the stages over them, and say what else it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

Layout = Literal["NLC", "NHWC", "NCHW"]
Capability = Literal["drop", "attend", "replace", "paint"]

CAPABILITIES: dict[Capability, str] = {
    "drop": "run on the visible units alone",
    "attend": "obey any attention mask",
    "replace": "put a mask token in the place of hidden units",
    "paint": "be shown images whose hidden units are painted over",
}


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


@dataclass(frozen=True)
class Tokens:
    """What `Backbone.embed` returns: the input of the first block, and all that must travel with it.

    A bare tensor would not do: for about 100 architectures of timm the positions are no part of it.

    Attributes:
        x: the tokens in the model's own layout (a tuple for the models with two streams).
        grid: rows and columns of **tokens** that the image was cut into, before any were dropped.
        prefix: how many class, register or distillation tokens stand in front.
        layout: how `x` is laid out.
        block_kwargs: keyword arguments of every block call (rotary positions, bias, sizes). They are arguments, and
            not state of the model, so that gradient checkpointing replays them.
        visible: units that were kept, in the order in which they stand in `x`; None for all, row by row.
    """

    x: Any
    grid: Grid
    prefix: int = 0
    layout: Layout = "NLC"
    block_kwargs: Mapping[str, Any] = field(default_factory=dict)
    visible: Int[Tensor, "B V"] | None = None

    def with_(self, **changes: Any) -> Tokens:
        return replace(self, **changes)


class CannotError(ValueError):
    """A backbone was asked for what it cannot do; the message says what it can."""


class Backbone(nn.Module, ABC):
    """A model that can be entered between its embedding and its blocks.

    `forward_stages(embed(images))` equals the wrapped model's own `forward_features(images)` bit for bit. The wrapped
    model is `self.model`: its parameters, keys and state stay its own.

    Attributes:
        can: what it can do besides; see `CAPABILITIES`.
        width: channels of one unit's feature.
        embed_width: channels of one token where a mask token takes its place (before positions are added).
        stride: pixels per side of a unit, (rows, cols).
        image_size: nominal (height, width).
        channels: of the image.
    """

    can: frozenset[Capability] = frozenset({"paint"})
    width: int
    embed_width: int
    stride: tuple[int, int]
    image_size: tuple[int, int]
    channels: int

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    # ---- what an adapter writes -------------------------------------------------------------------------------------

    @abstractmethod
    def to_patches(self, images: Float[Tensor, "B C H W"]) -> Tokens:
        """Cut and project the image: tokens with no position yet, which is where a mask token goes in."""

    @abstractmethod
    def add_positions(self, patches: Tokens) -> Tokens:
        """From patches to the input of the first block: positions, prefix tokens, dropout, pre-norm."""

    @abstractmethod
    def forward_stages(
        self, tokens: Tokens, *, can_see: Bool[Tensor, "*B L L"] | None = None, is_causal: bool = False
    ) -> Any:
        """Run blocks and final norm: the wrapped model's `forward_features` from the first block on.

        Args:
            can_see: True where the token of the row may look at the token of the column, prefix tokens included;
                (L, L), or (B, 1, L, L) for another mask per image. Needs "attend".
            is_causal: each token sees itself and those before it. At most one of the two.
        """

    @abstractmethod
    def split(self, features: Any, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        """The features as (prefix tokens, units): units row by row, or in the order of `tokens.visible`."""

    def keep(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        """The tokens of the given units only, in the given order, each with its own position. Needs "drop"."""
        raise CannotError(self.cannot("drop"))

    def unused(self) -> list[str]:
        """Names of `model`'s submodules that `forward_stages` never reaches (heads)."""
        return []

    # ---- what every backbone has ------------------------------------------------------------------------------------

    def embed(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        is_hidden: Bool[Tensor, "B rows cols"] | None = None,
        mask_token: Float[Tensor, " E"] | None = None,
    ) -> Tokens:
        """Images to tokens, with hidden units replaced before positions are added (Xie et al. 2022, section 3.2).

        The pixels of hidden units are blanked as well: where stems overlap, replacing the token alone would let up to
        a quarter of them through to the neighbours.

        Args:
            is_hidden: True where a unit is hidden, on the grid of units.
            mask_token: stands for a hidden token; zeros if None. Needs "replace" where `is_hidden` is given.
        Raises:
            ValueError: if the image does not fit the model, or the mask not the grid.
        """
        grid = self.grid(images)
        if is_hidden is None:
            return self.add_positions(self.to_patches(images))
        if "replace" not in self.can:
            raise CannotError(self.cannot("replace"))
        if tuple(is_hidden.shape[1:]) != grid:
            raise ValueError(f"is_hidden is {tuple(is_hidden.shape[1:])}, but these images have {grid} units")
        patches = self.to_patches(paint(images, is_hidden))
        return self.add_positions(fill(patches, is_hidden, mask_token))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Any:
        """The wrapped model's own `forward_features`."""
        return self.forward_stages(self.embed(images))

    def units(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The feature of every unit of the whole image, row by row."""
        tokens = self.embed(images)
        return self.split(self.forward_stages(tokens), tokens)[1]

    def pool(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The embedding of each image: the mean over the units of the whole, unmasked image."""
        return self.units(images).mean(dim=1)

    def grid(self, images: Float[Tensor, "B C H W"] | tuple[int, int]) -> Grid:
        """The grid of units of these images, or of this (height, width).

        Raises:
            ValueError: if the channels are not the model's, or the size is not divisible by `stride`.
        """
        if isinstance(images, Tensor):
            if images.shape[1] != self.channels:
                raise ValueError(f"{self.name} takes {self.channels} channels; got {images.shape[1]}")
            images = (images.shape[-2], images.shape[-1])
        (height, width), (down, right) = images, self.stride
        if height % down or width % right or not height or not width:
            divisors = f"{down}" if down == right else f"{down} and {right}"
            raise ValueError(f"{self.name} needs H and W divisible by {divisors}; got {height}x{width}")
        return Grid(height // down, width // right)

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def cannot(self, wish: Capability) -> str:
        """One sentence: what it cannot do, and what it can."""
        known = "; ".join(CAPABILITIES[each] for each in CAPABILITIES if each in self.can)
        return f"{self.name} cannot {CAPABILITIES[wish]} ({wish!r}); it can {known} ({', '.join(sorted(self.can))})"

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters that no feature depends on: classifier heads. Freeze them, or DDP waits for their gradients."""
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if any(name == part or name.startswith(part + ".") for part in self.unused())
        ]


def upsample(is_hidden: Bool[Tensor, "B rows cols"], size: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    """The mask of units at a finer resolution.

    >>> upsample(torch.tensor([[[True, False]]]), (2, 4)).int().tolist()
    [[[1, 1, 0, 0], [1, 1, 0, 0]]]
    """
    return F.interpolate(is_hidden[:, None].to(torch.float32), size=size, mode="nearest")[:, 0] > 0.5


def paint(
    images: Float[Tensor, "B C H W"], is_hidden: Bool[Tensor, "B rows cols"], value: float = 0.0
) -> Float[Tensor, "B C H W"]:
    """The images with the pixels of hidden units set to `value` (0 is the mean of normalised images)."""
    return images.masked_fill(upsample(is_hidden, (images.shape[-2], images.shape[-1]))[:, None], value)


def fill(patches: Tokens, is_hidden: Bool[Tensor, "B rows cols"], mask_token: Float[Tensor, " E"] | None) -> Tokens:
    """The tokens with `mask_token` in the place of every token of a hidden unit."""
    x, hidden = patches.x, upsample(is_hidden, patches.grid)
    channel_dim = 1 if patches.layout == "NCHW" else -1
    token = x.new_zeros(x.shape[channel_dim]) if mask_token is None else mask_token.to(x.dtype)
    if patches.layout == "NLC":
        return patches.with_(x=torch.where(hidden.flatten(1)[..., None], token, x))
    if patches.layout == "NHWC":
        return patches.with_(x=torch.where(hidden[..., None], token, x))
    return patches.with_(x=torch.where(hidden[:, None], token[:, None, None], x))


def take(x: Num[Tensor, "B N D"], index: Int[Tensor, "B *K"]) -> Num[Tensor, "B *K D"]:
    """Rows of each batch element by index, for an index of any shape.

    >>> take(torch.arange(6.).view(1, 3, 2), torch.tensor([[[2, 0]]])).tolist()
    [[[[4.0, 5.0], [0.0, 1.0]]]]
    """
    rows = index.flatten(1)
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1])).unflatten(1, index.shape[1:])
