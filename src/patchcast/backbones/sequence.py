"""Models of one token sequence: `patch_embed -> _pos_embed -> norm_pre -> blocks -> norm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from timm.layers import HybridEmbed
from torch import Tensor, nn

from patchcast.backbones.backbone import CannotError, ImageBatch, Tokens, additive, apply_blocks
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid, take


class Sequence(TimmBackbone):
    """Models of one sequence: prefix tokens first, then one token per unit. Tokens interact through attention only, so
    units can be dropped and attention can be masked."""

    can = frozenset({"drop", "attend", "replace", "paint"})
    takes_tiles: bool = False
    """Whether its blocks can run over the tokens of several images, or tiles, in one sequence: see `positions_like`."""

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.features_prefix = getattr(self.model, "num_prefix_tokens", 0)  # not all classes have this attribute
        # A patch_embed that leaves the grid unflattened lets `_pos_embed` resample positions to any size.
        self.takes_any_size = getattr(self.model, "dynamic_img_size", False)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed(images)
        if x.ndim == 4:
            return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")
        return Tokens(x, self.grid(images))

    def add_positions(self, patches: Tokens) -> Tokens:
        tokens = self.place(patches)
        return tokens.with_(x=self.pre_norm(tokens.x))

    def add_positions_hiding(
        self, patches: Tokens, is_hidden_prefix: Bool[Tensor, "B R"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        tokens, own = self.place(patches), self.prefix_tokens()
        if not tokens.prefix or own.shape != (tokens.prefix, tokens.x.shape[-1]):
            return super().add_positions_hiding(patches, is_hidden_prefix, mask_token)
        if is_hidden_prefix.shape[1] != tokens.prefix:
            raise ValueError(
                f"is_hidden_prefix is for {is_hidden_prefix.shape[1]} prefix tokens; {self.name} has {tokens.prefix}"
            )
        dropout = getattr(self.model, "pos_drop", None)
        if isinstance(dropout, nn.Dropout) and dropout.p and self.training:
            raise ValueError("class tokens are replaced after dropout (pos_drop_rate), which must be 0")
        # Positions were added to the tokens already: add the difference.
        change = -own if mask_token is None else mask_token - own
        prefix = tokens.x[:, : tokens.prefix] + change * is_hidden_prefix[..., None]
        x = torch.cat([prefix, tokens.x[:, tokens.prefix :]], dim=1)
        return tokens.with_(x=self.pre_norm(x))

    def prefix_tokens(self) -> Float[Tensor, "R D"]:
        """Class, distillation and register tokens as parameters, in the order of the sequence."""
        holder = getattr(self.model, "embeds", self.model)
        names = ("cls_token", "dist_token", "reg_token")
        found = [each[0] for name in names if (each := getattr(holder, name, None)) is not None]
        return torch.cat(found) if found else torch.empty(0, self.embed_width)

    def keep_rows(self, tokens: Tokens, rows: Int[Tensor, "B K"]) -> Tokens:
        if tokens.visible is not None or tokens.rows is not None:
            raise ValueError("tokens were dropped already; give all tokens to keep in one call")
        if "drop" not in self.can or not tokens.prefix or tokens.is_valid is not None:
            return super().keep_rows(tokens, rows)
        return tokens.with_(x=take(tokens.x, rows), prefix=0, rows=rows, block_kwargs=self.kwargs_of(rows, tokens))

    def kwargs_of(self, rows: Int[Tensor, "B K"], tokens: Tokens) -> dict[str, Any]:
        """The `block_kwargs` of these rows of the sequence."""
        if tokens.block_kwargs:  # rotations, which the attention applies to all but the first tokens
            raise CannotError(f"{self.name} cannot run without its class tokens: its rotary positions need them")
        return {}

    def place(self, patches: Tokens) -> Tokens:
        """Positions and prefix tokens: `add_positions` without the norm after them."""
        raise NotImplementedError

    def pre_norm(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return x

    def run_stages(self, tokens: Tokens) -> Any:
        return self.model.norm(self.run_blocks(tokens))

    def run_blocks(self, tokens: Tokens, first: int = 0, last: int | None = None) -> Float[Tensor, "B L D"]:
        """The blocks from `first` up to but not including `last`, without the final norm."""
        return apply_blocks(self.model.blocks[first:last], tokens.x, self.model, **tokens.block_kwargs)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def positions_like(self, kwargs: Mapping[str, Any], own: Int[Tensor, "b L"]) -> dict[str, Any]:
        """The `block_kwargs` of a sequence in which token i has the position of token `own[i]` of one image.

        Unchanged in models that add positions to the tokens.

        Args:
            kwargs: the `block_kwargs` of one image.
        """
        return dict(kwargs)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        prefix, units = tokens.x[:, : tokens.prefix], tokens.x[:, tokens.prefix :]
        return tokens.with_(
            x=torch.cat([prefix, take(units, visible)], dim=1),
            visible=visible,
            block_kwargs=self.positions_of(visible, tokens),
        )

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        """The `block_kwargs` of the visible units. Unchanged in models that add positions to the tokens."""
        return dict(tokens.block_kwargs)

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        # Without a mask, the call is exactly timm's own.
        mask = {"is_causal": True} if can_see is None else {"attn_mask": additive(can_see, tokens.x)}
        return tokens.with_(block_kwargs={**tokens.block_kwargs, **mask})


class ViT(Sequence):
    """timm's plain `VisionTransformer`: ViT, DeiT, CLIP, SigLIP, DINOv2, AIMv2 towers; hybrids with a CNN stem.

    >>> import timm
    >>> backbone = ViT(timm.create_model("test_vit"))
    >>> backbone.units(torch.zeros(2, 3, 160, 160)).shape
    torch.Size([2, 100, 64])
    """

    takes_tiles = True
    written_out: ClassVar = {"": frozenset({"_pos_embed"})}

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        patch_embed = self.model.patch_embed
        if isinstance(patch_embed, HybridEmbed):  # a ResNet or ViTamin stem, whose kernels overlap
            self.pixels_stay_in_unit = False
        else:
            self.stride = tuple(patch_embed.patch_size)

    def place(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model._pos_embed(patches.x), prefix=self.features_prefix, layout="NLC")

    def pre_norm(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.model.norm_pre(x)


class RoPE(Sequence):
    """timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, and ViTs with axial or mixed rotary positions.

    >>> import timm
    >>> backbone = RoPE(timm.create_model("vit_tiny_patch16_dinov3_qkvb", img_size=64, depth=1))
    >>> tokens = backbone.keep(backbone.embed(torch.zeros(1, 3, 64, 64)), torch.tensor([[3, 9]]))
    >>> tokens.x.shape, tokens.prefix, tokens.block_kwargs["rope"].shape
    (torch.Size([1, 7, 192]), 5, torch.Size([1, 1, 2, 128]))
    """

    takes_tiles = True
    written_out: ClassVar = {"": frozenset({"_pos_embed"})}

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.stride = tuple(self.model.patch_embed.patch_size)
        self.rope_per_block = self.model.rope_mixed

    def place(self, patches: Tokens) -> Tokens:
        x, rope = self.model._pos_embed(patches.x)
        kwargs = {} if rope is None else {"rope": rope}
        return patches.with_(x=x, prefix=self.features_prefix, layout="NLC", block_kwargs=kwargs)

    def pre_norm(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.model.norm_pre(x)

    def run_blocks(self, tokens: Tokens, first: int = 0, last: int | None = None) -> Float[Tensor, "B L D"]:
        rope = tokens.block_kwargs.get("rope")
        if rope is None or not self.rope_per_block:
            return super().run_blocks(tokens, first, last)
        x, blocks = tokens.x, self.model.blocks[first:last]
        for block, rotation in zip(blocks, rope[first:last], strict=True):  # every block learned its own rotation
            x = apply_blocks([block], x, self.model, **{**tokens.block_kwargs, "rope": rotation})
        return x

    def positions_like(self, kwargs: Mapping[str, Any], own: Int[Tensor, "b L"]) -> dict[str, Any]:
        if "rope" not in kwargs:
            return dict(kwargs)
        # The attention does not rotate the prefix tokens of the first tile. Those of the other tiles come after them
        # and need a rotation by zero: sine 0 and cosine 1, which timm stores next to each other.
        rope, prefix = kwargs["rope"], self.features_prefix
        nothing = torch.cat(
            [
                torch.zeros_like(rope[..., :1, :]).chunk(2, dim=-1)[0],
                torch.ones_like(rope[..., :1, :]).chunk(2, dim=-1)[1],
            ],
            dim=-1,
        )
        unit = own[:, prefix:] - prefix
        turned = torch.cat([rope, nothing], dim=-2)
        return {**kwargs, "rope": take_rope(turned, torch.where(unit < 0, rope.shape[-2], unit))}

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        kwargs = super().positions_of(visible, tokens)
        if "rope" in kwargs:
            kwargs["rope"] = take_rope(kwargs["rope"], visible)
        return kwargs


def lower_triangle(tokens: Tokens) -> Bool[Tensor, "L L"]:
    """The causal mask, for attention without an `is_causal` argument."""
    length = tokens.x.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=tokens.x.device).tril()


def take_rope(rope: Float[Tensor, "*depth_heads N R"], visible: Int[Tensor, "B V"]) -> Float[Tensor, "..."]:
    """Rotations of the visible units: (N, R) to (B, 1, V, R), or (depth, heads, N, R) to (depth, B, heads, V, R).

    >>> take_rope(torch.zeros(9, 4), torch.tensor([[0, 8]])).shape
    torch.Size([1, 1, 2, 4])
    """
    if rope.ndim == 2:
        return rope[visible][:, None]
    return rope[:, :, visible].transpose(1, 2)
