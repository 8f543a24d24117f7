"""`Backbone`: embed an image into tokens, run the stages over them, and declare what else is possible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Real
from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from patchcast.backbones.capabilities import CAPABILITIES, DEFAULT_READOUT, Capability, Readout
from patchcast.backbones.precision import precision
from patchcast.backbones.readout import READOUTS
from patchcast.geometry import Grid, Layout, paint, put, to_rows, upsample

# A batch of images; or images of different sizes, either as timm's NaFlex loader makes them ("patches", "patch_coord"
# and "patch_valid", for NaFlexVit), or in the upper left corner of one canvas each ("canvas", and "size" in pixels, for
# `Tiled`). Images are floating point, but for ImageGPT, which takes 8-bit ones and codes as well.
ImageBatch = Real[Tensor, "B C H W"] | Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """What `Backbone.embed` returns: the input of the first block, and everything that the blocks need with it.

    A tensor alone is not enough: in about 100 architectures of timm, positions are not part of it.

    Attributes:
        x: the tokens in the model's own layout (a tuple for the models with two streams).
        grid: rows and columns of **tokens** in the whole image, before any were dropped.
        prefix: number of class, register and distillation tokens, which come first.
        layout: how `x` is laid out.
        block_kwargs: keyword arguments of every block call (rotary positions, bias, sizes). They are arguments, and
            not state of the model, so that gradient checkpointing replays them.
        visible: indices of the units in `x`, in their order there; None for all, row by row.
        is_valid: False where a unit is padding (batches of images of different sizes); None if none is.
        rows: indices of the rows of the whole sequence in `x`, prefix tokens included: see `Backbone.keep_rows`.
    """

    x: Any
    grid: Grid
    prefix: int = 0
    layout: Layout = "NLC"
    block_kwargs: Mapping[str, Any] = field(default_factory=dict)
    visible: Int[Tensor, "B V"] | None = None
    is_valid: Bool[Tensor, "B V"] | None = None
    rows: Int[Tensor, "B V"] | None = None

    def with_(self, **changes: Any) -> Tokens:
        return replace(self, **changes)


class CannotError(ValueError):
    """Raised when a backbone cannot do what a method needs. The message says what it can do.

    >>> from patchcast.backbones import wrap
    >>> wrap("pvt_v2_b0").keep(Tokens(torch.zeros(1, 1, 1), Grid(1, 1)), torch.zeros(1, 1, dtype=torch.long))
    Traceback (most recent call last):
        ...
    patchcast.backbones.backbone.CannotError: PyramidVisionTransformerV2 cannot run on the visible units alone ...
    """


class Backbone(nn.Module, ABC):
    """A model that is split between its embedding and its blocks.

    `forward(images)`, which is `own_features(forward_stages(embed(images)))`, equals the wrapped model's own
    `forward_features(images)` bit for bit. The wrapped model is `self.model`; its parameters and state-dict keys do not
    change.

    >>> from patchcast.backbones import wrap
    >>> backbone = wrap("test_vit", img_size=64)
    >>> tokens = backbone.embed(torch.zeros(2, 3, 64, 64))
    >>> tokens.grid, tokens.prefix, tokens.x.shape
    (Grid(rows=4, cols=4), 1, torch.Size([2, 17, 64]))
    >>> few = backbone.keep(tokens, torch.tensor([[0, 5, 15], [1, 2, 3]]))
    >>> prefix, units = backbone.split(backbone.forward_stages(few, is_causal=True), few)
    >>> prefix.shape, units.shape
    (torch.Size([2, 1, 64]), torch.Size([2, 3, 64]))

    Attributes:
        can: what else it can do; see `CAPABILITIES`.
        width: channels of one unit's feature.
        embed_width: channels of a mask token (before positions are added).
        stride: pixels per side of a unit, (rows, cols).
        image_size: nominal (height, width).
        channels: of the image.
        takes_any_size: whether images may have any size that `stride` divides, not only `image_size`.
        takes_integers: whether images may be 8-bit, or codes (ImageGPT); other backbones take floating point.
        pixels_stay_in_unit: whether a token depends on its own unit's pixels only. If not (overlapping stems), hidden
            pixels must be blanked before units are dropped, and no attention mask is causal for pixels.
        features_layout: layout of the result of `forward_stages`.
        features_prefix: number of tokens before the units in it.
    """

    can: frozenset[Capability] = frozenset({"paint"})
    width: int
    embed_width: int
    stride: tuple[int, int]
    image_size: tuple[int, int]
    channels: int
    takes_any_size: bool = False
    takes_integers: bool = False
    pixels_stay_in_unit: bool = True
    features_layout: Layout = "NLC"
    features_prefix: int = 0
    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if any(
            isinstance(module, PatchDropout | PatchDropoutWithIndices) and module.prob for module in model.modules()
        ):
            raise ValueError(f"{self.name} drops patches itself (patch_drop_rate): build it without, and use `keep`")

    # ---- what an adapter writes -------------------------------------------------------------------------------------

    @abstractmethod
    def to_patches(self, images: ImageBatch) -> Tokens:
        """Cut and project the image: tokens without positions. Mask tokens are inserted here."""

    def add_positions(self, patches: Tokens) -> Tokens:
        """From patches to the input of the first block: positions, prefix tokens, dropout, pre-norm."""
        return patches

    @abstractmethod
    def run_stages(self, tokens: Tokens) -> Any:
        """Blocks and final norm: the wrapped model's `forward_features` from the first block on.

        Everything that depends on positions or masks is passed to the blocks as an argument (`block_kwargs`).
        """

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        """`keep`, for backbones with "drop"."""
        raise NotImplementedError

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        """The tokens with an attention mask in `block_kwargs` (None: the causal mask), for backbones with "attend"."""
        raise NotImplementedError

    def length(self, tokens: Tokens) -> int:
        """Number of rows and columns of an attention mask for these tokens, for backbones with "attend"."""
        return tokens.x.shape[1]

    def own_features(self, features: Any) -> Any:
        """What the wrapped model's `forward_features` would have returned."""
        return features

    def unused(self) -> list[str]:
        """Names of `model`'s submodules and parameters that `forward_stages` never reaches (heads)."""
        return ["head", "head_dist", "fc_norm", "attn_pool"]

    def block_modules(self) -> list[nn.Module]:
        """The blocks of `model` in the order in which they run, if each runs only by a call of its own.

        Where devices share weights, those of one block are gathered at a time. None here: then the model is one block.
        """
        return []

    def not_in_features(self) -> list[str]:
        """Names of those that it reaches but that no feature of a unit or a prefix token depends on (other scales)."""
        return []

    def prefix_only(self) -> list[str]:
        """Names of those that only features of prefix tokens depend on (class attention, norms of class tokens)."""
        return []

    # ---- what every backbone has ------------------------------------------------------------------------------------

    def embed(
        self,
        images: ImageBatch,
        *,
        is_hidden: Bool[Tensor, "B rows cols"] | None = None,
        mask_token: Float[Tensor, " E"] | None = None,
        is_hidden_prefix: Bool[Tensor, "B R"] | None = None,
    ) -> Tokens:
        """Images to tokens, with hidden units replaced before positions are added (Xie et al. 2022, section 3.2).

        The pixels of hidden units are blanked too: in overlapping stems, up to a quarter of them would otherwise reach
        the tokens of neighboring units.

        Args:
            is_hidden: True where a unit is hidden, on the grid of units.
            mask_token: replaces each hidden token; zeros if None. With `is_hidden` it needs "replace".
            is_hidden_prefix: True where a class or register token is to be replaced by the mask token as well.
        Raises:
            CannotError: if the backbone takes no mask tokens, or none among its class tokens.
            ValueError: if the image does not fit the model, or the mask does not fit the grid.
        """
        self.check_dtype(images)
        grid = self.grid(images)
        if is_hidden is None:
            patches = self.to_patches(images)
        else:
            if "replace" not in self.can:
                raise CannotError(self.cannot("replace"))
            if tuple(is_hidden.shape[1:]) != grid:
                raise ValueError(f"is_hidden is {tuple(is_hidden.shape[1:])}, but these images have {grid} units")
            patches = self.fill(self.to_patches(self.blank(images, is_hidden)), is_hidden, mask_token)
        if is_hidden_prefix is None:
            return self.add_positions(patches)
        return self.add_positions_hiding(patches, is_hidden_prefix, mask_token)

    def forward_stages(
        self, tokens: Tokens, *, can_see: Bool[Tensor, "*B L L"] | None = None, is_causal: bool = False
    ) -> Any:
        """Run blocks and final norm over tokens.

        Args:
            can_see: True where the token of the row may attend to the token of the column; prefix tokens come first.
                (L, L), or (B, 1, L, L) for a different mask per image. Needs "attend".
            is_causal: each token sees itself and those before it. At most one of the two.
        Raises:
            CannotError: if a mask is given to a backbone without "attend".
            ValueError: if both are given, `can_see` is for another number of tokens, or a row of it has no True (its
                softmax would be NaN).
        """
        if can_see is None and not is_causal:
            return self.run_stages(tokens)
        if "attend" not in self.can:
            raise CannotError(self.cannot("attend"))
        if can_see is None:
            return self.run_stages(self.mask_attention(tokens, None))
        if is_causal:
            raise ValueError("give can_see or is_causal, not both: timm drops one of them silently")
        if can_see.ndim not in (2, 4):
            raise ValueError(f"can_see must be (L, L) or (B, 1, L, L); got {tuple(can_see.shape)}")
        if can_see.shape[-1] != (length := self.length(tokens)):
            raise ValueError(
                f"can_see is for {can_see.shape[-1]} tokens; there are {length}: {tokens.prefix} prefix tokens and "
                f"{length - tokens.prefix} units"
            )
        # Only where reading a value makes no GPU wait; the plans of this package never draw an empty row.
        if can_see.device.type == "cpu" and not torch.compiler.is_compiling() and not can_see.any(dim=-1).all():
            raise ValueError("a row of can_see has no True: every token must see at least one, itself for example")
        return self.run_stages(self.mask_attention(tokens, can_see))

    def keep(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        """The tokens of the given units only, in the given order, each with its own position. Needs "drop".

        If `pixels_stay_in_unit` is False, pass the hidden units to `embed` too. It blanks their pixels, which the
        tokens of visible units would otherwise have seen.

        Raises:
            CannotError: if the backbone cannot run without the other units.
            ValueError: if units were dropped already.
        """
        if "drop" not in self.can:
            raise CannotError(self.cannot("drop"))
        if tokens.visible is not None:
            raise ValueError("units were dropped already; give all units to keep in one call")
        return self.select(tokens, visible)

    def keep_rows(self, tokens: Tokens, rows: Int[Tensor, "B K"]) -> Tokens:
        """The tokens of the given rows of the whole sequence, in which class and register tokens come first.

        Unlike `keep`, this can drop class and register tokens too. Only models whose positions are added to the tokens
        or looked up by pair can do it. `split` then treats all rows as units.

        Raises:
            CannotError: if the backbone cannot run without its class tokens.
            ValueError: if tokens were dropped already.
        """
        raise CannotError(f"{self.name} cannot run without its class and register tokens")

    def add_positions_hiding(
        self, patches: Tokens, is_hidden_prefix: Bool[Tensor, "B R"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        """`add_positions`, with some prefix tokens replaced by the mask token."""
        raise CannotError(f"{self.name} has no place for a mask token among its class and register tokens")

    def split(self, features: Any, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        """The features as (prefix tokens, units): units row by row, or in the order of `tokens.visible`."""
        rows = to_rows(features, self.features_layout)
        prefix = self.features_prefix if tokens.rows is None else 0
        return rows[:, :prefix], rows[:, prefix:]

    def validity(self, tokens: Tokens) -> Bool[Tensor, "B L"] | None:
        """False where a row of the features (prefix tokens first) is padding; None if none is."""
        if tokens.is_valid is None:
            return None
        return torch.cat([tokens.is_valid.new_ones(len(tokens.is_valid), tokens.prefix), tokens.is_valid], dim=1)

    def forward(self, images: ImageBatch) -> Any:
        """The wrapped model's own `forward_features`."""
        return self.own_features(self.forward_stages(self.embed(images)))

    def units(self, images: ImageBatch) -> Float[Tensor, "B N D"]:
        """The feature of every unit of the whole image, row by row."""
        return self.units_and_validity(images)[0]

    def units_and_validity(self, images: ImageBatch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"] | None]:
        """`units`, and False where one is padding (None if none is)."""
        tokens = self.embed(images)
        return self.split(self.forward_stages(tokens), tokens)[1], tokens.is_valid

    def pool(self, images: ImageBatch, readout: Readout = DEFAULT_READOUT) -> Float[Tensor, "B D"]:
        """The embedding of each whole, unmasked image, by one of `patchcast.backbones.readout.READOUTS`.

        Raises:
            CannotError: if the readout needs something that this model does not have.
        """
        return READOUTS[readout](self, images)

    def class_token(self, images: ImageBatch) -> Float[Tensor, "B D"]:
        """The feature of the class token of the whole image.

        Raises:
            CannotError: if the model has none.
        """
        if not self.features_prefix or getattr(self.model, "cls_token", None) is None:
            raise CannotError(f"{self.name} has no class token; use another readout, such as mean")
        tokens = self.embed(images)
        return self.split(self.forward_stages(tokens), tokens)[0][:, 0]

    def block_outputs(
        self, images: ImageBatch, blocks: int | Sequence[int] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """The raw output of each block as a map (B, D, rows, cols), before the final norm.

        Args:
            blocks: the number of last blocks, or their indices; None for all.
        Raises:
            CannotError: if timm gives this architecture no `forward_intermediates`.
        """
        forward = getattr(self.model, "forward_intermediates", None)
        if not callable(forward):
            raise CannotError(f"{self.name} cannot be probed by layer: timm gives it no forward_intermediates")
        self.grid(images)  # checked here: some models' own forward does not check the size
        indices = blocks if blocks is None or isinstance(blocks, int) else list(blocks)
        return list(forward(images, indices=indices, norm=False, intermediates_only=True, output_fmt="NCHW"))

    def check_dtype(self, images: ImageBatch) -> None:
        """Raise an error for images that were not converted to floating point.

        Raises:
            ValueError: if they are integers; says what to do.
        """
        pixels = images if isinstance(images, Tensor) else images.get("canvas", images.get("patches"))
        if isinstance(pixels, Tensor) and not (pixels.is_floating_point() or self.takes_integers):
            raise ValueError(
                f"{self.name} takes normalized images in floating point; got {pixels.dtype}: "
                "give (images / 255 - mean) / std, with the mean and std of each channel"
            )

    def grid(self, images: ImageBatch | tuple[int, int]) -> Grid:
        """The grid of units of these images, or of this (height, width).

        Raises:
            ValueError: if the channels are not the model's, or the model does not take this size.
        """
        if isinstance(images, Mapping):
            raise ValueError(f"{self.name} takes images of one size; batches of patches are for NaFlexVit")
        if isinstance(images, Tensor):
            if images.shape[1] != self.channels:
                raise ValueError(f"{self.name} takes {self.channels} channels; got {images.shape[1]}")
            images = (images.shape[-2], images.shape[-1])
        (height, width), (down, right) = images, self.stride
        if not self.takes_any_size and (height, width) != self.image_size:
            size = "{}x{}".format(*self.image_size)
            raise ValueError(f"this {self.name} takes {size} only; got {height}x{width} (build it with img_size=...)")
        if height % down or width % right or not height or not width:
            divisors = f"{down}" if down == right else f"{down} and {right}"
            raise ValueError(f"{self.name} needs H and W divisible by {divisors}; got {height}x{width}")
        return Grid(height // down, width // right)

    def grid_of_each(self, images: ImageBatch) -> list[Grid] | None:
        """The grid of each image, in the upper left corner of `grid(images)`; None if every image fills it."""
        return None

    def blank(self, images: ImageBatch, is_hidden: Bool[Tensor, "B rows cols"]) -> ImageBatch:
        """The images with the pixels of hidden units set to 0, the mean of normalized images."""
        return with_pixels(images, paint(pixels_of(images), is_hidden))

    def fill(
        self, patches: Tokens, is_hidden: Bool[Tensor, "B rows cols"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        """The patches with every token of a hidden unit replaced by `mask_token`."""
        hidden = upsample(is_hidden, patches.grid)
        return patches.with_(x=put(patches.x, hidden, mask_token, patches.layout))

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def cannot(self, wish: Capability) -> str:
        """The error message: what it cannot do, and what it can."""
        known = "; ".join(CAPABILITIES[capability] for capability in CAPABILITIES if capability in self.can)
        return f"{self.name} cannot {CAPABILITIES[wish]} ({wish!r}); it can {known} ({', '.join(sorted(self.can))})"

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters that no feature depends on: classifier heads. Freeze them, or DDP waits for their gradients."""
        return self.parameters_in(self.unused())

    def parameters_in(self, parts: list[str]) -> list[nn.Parameter]:
        """The parameters of `model` that are, or are inside, one of the named parts."""
        return [
            parameter
            for name, parameter in self.model.named_parameters()
            if any(name == part or name.startswith(part + ".") for part in parts)
        ]


def pixels_of(images: ImageBatch) -> Real[Tensor, "B C H W"]:
    """The pixels of a batch: the images, or the canvases that hold images of different sizes.

    >>> pixels_of({"canvas": torch.zeros(1, 3, 32, 64), "size": torch.tensor([[32, 40]])}).shape
    torch.Size([1, 3, 32, 64])
    """
    return images if isinstance(images, Tensor) else images["canvas"]


def with_pixels(images: ImageBatch, pixels: Real[Tensor, "B C H W"]) -> ImageBatch:
    """The batch with other pixels."""
    return pixels if isinstance(images, Tensor) else {**images, "canvas": pixels}


def additive(can_see: Bool[Tensor, "*B L L"], like: Tensor) -> Float[Tensor, "*B L L"]:
    """The mask as it is added to attention logits, in their precision.

    Attention would otherwise convert the boolean mask in every block, and store each copy for the backward pass.

    >>> additive(torch.tensor([[True, False], [True, True]]), torch.zeros(1)).tolist()
    [[0.0, -inf], [0.0, 0.0]]
    """
    return torch.zeros_like(can_see, dtype=precision(like)).masked_fill_(~can_see, float("-inf"))


def apply_blocks(blocks: Iterable[nn.Module], x: Any, model: nn.Module, **kwargs: Any) -> Any:
    """`x` through the blocks, one call each, recomputed in backward if `model` asks for gradient checkpointing."""
    for block in blocks:
        x = checkpoint(block, x, **kwargs) if model.grad_checkpointing else block(x, **kwargs)
    return x
