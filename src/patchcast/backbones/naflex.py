"""NaFlexVit: batches of images of one size, or of the patches of images of different sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from timm.models.naflexvit import batch_patchify, create_attention_mask
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.sequence import RoPE, Sequence, lower_triangle, take_rope
from patchcast.geometry import Grid


class NaFlex(RoPE):
    """timm's `NaFlexVit`.

    A batch from timm's NaFlex loader is one row of N units, with padding after the units of smaller images:
    `is_hidden` is (B, 1, N), and `Tokens.is_valid` is False for padding. Units are dropped after positions are added,
    because timm assigns positions by the index of a patch in its input.

    >>> import timm
    >>> backbone = NaFlex(timm.create_model("naflexvit_base_patch16_gap", depth=1))
    >>> backbone.units(torch.zeros(1, 3, 32, 48)).shape
    torch.Size([1, 6, 768])
    """

    written_out: ClassVar = {
        "": frozenset({"_generate_rope_naflex", "as_sequential", "prewarm_patch_interpolator"}),
        "embeds": frozenset({"_apply_learned_pos_embed", "_apply_factorized_pos_embed"}),
    }

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        Sequence.__init__(self, model, image_size)
        self.stride = tuple(self.model.embeds.patch_size)
        self.takes_any_size = True
        self.rope_per_block = self.model.rope is not None and self.model.rope_is_mixed

    def grid(self, images: ImageBatch | tuple[int, int]) -> Grid:
        return Grid(1, images["patches"].shape[1]) if isinstance(images, Mapping) else super().grid(images)

    def blank(self, images: ImageBatch, is_hidden: Bool[Tensor, "B rows cols"]) -> ImageBatch:
        if not isinstance(images, Mapping):
            return super().blank(images, is_hidden)
        patches = images["patches"]
        hidden = is_hidden[:, 0].reshape(*patches.shape[:2], *[1] * (patches.ndim - 2))
        return {**images, "patches": patches.masked_fill(hidden, 0.0)}

    def to_patches(self, images: ImageBatch) -> Tokens:
        embeds, grid = self.model.embeds, self.grid(images)
        if not isinstance(images, Mapping):
            if embeds.is_linear:
                order = {} if getattr(embeds, "channels_last", True) else {"channels_last": False}
                x = self.project(batch_patchify(images, embeds.patch_size, **order)[0])
            else:
                x = embeds.proj(images).flatten(2).transpose(1, 2)
            return Tokens(embeds.norm(x), grid)
        x = embeds.norm(self.project(images["patches"]))
        return Tokens(x, grid, is_valid=images["patch_valid"], block_kwargs={"coord": images["patch_coord"]})

    def project(self, patches: Float[Tensor, "B N *pixels"]) -> Float[Tensor, "B N D"]:
        """Pixels of patches to tokens. For patches of another size, the weights are resampled."""
        embeds = self.model.embeds
        if embeds.enable_patch_interpolator and patches.ndim == 5:
            size = tuple(patches.shape[2:4] if getattr(embeds, "channels_last", True) else patches.shape[3:5])
            weight, bias = embeds.proj.weight, embeds.proj.bias
            return embeds.patch_interpolator(patches, weight, bias, patch_size=size, is_linear=True)
        x = patches.flatten(2)
        return embeds.proj(x if embeds.norm_input is None else embeds.norm_input(x))

    def place(self, patches: Tokens) -> Tokens:
        model, coord = self.model, patches.block_kwargs.get("coord")
        x = self.add_table(patches.x.clone(), patches.grid, coord)
        prefix = [
            token.expand(len(x), -1, -1)
            for token in (model.embeds.cls_token, model.embeds.reg_token)
            if token is not None
        ]
        x = model.embeds.pos_drop(torch.cat([*prefix, x], dim=1))
        rope = None
        if model.rope is not None:
            rope = model.rope.get_embed(shape=patches.grid) if coord is None else model._generate_rope_naflex(x, coord)
            if not isinstance(rope, Tensor):  # an iterator over blocks
                rope = torch.stack(list(rope))
        kwargs = {} if rope is None else {"rope": rope}
        return patches.with_(x=x, prefix=self.features_prefix, block_kwargs=kwargs)

    def add_table(self, x: Float[Tensor, "B N D"], grid: Grid, coord: Int[Tensor, "B N 2"] | None) -> Tensor:
        """Add learned positions, in place, where the model has any."""
        embeds = self.model.embeds
        if embeds.pos_embed_type not in ("learned", "factorized"):
            return x
        if coord is None:
            getattr(embeds, f"_apply_{embeds.pos_embed_type}_pos_embed")(x, grid_size=grid)
        else:
            sampled = "_grid_sample" if embeds.pos_embed_use_grid_sample else ""
            getattr(embeds, f"_apply_{embeds.pos_embed_type}_naflex_pos_embed{sampled}")(x, patch_coord=coord)
        return x

    def run_stages(self, tokens: Tokens) -> Any:
        if tokens.is_valid is None:
            return super().run_stages(tokens)
        by_key = getattr(self.model, "use_key_only_attn_mask", False)  # timm 1.0.26 has no such choice
        mask = create_attention_mask(
            tokens.is_valid, tokens.prefix, symmetric=not by_key, q_len=1 if by_key else None, dtype=tokens.x.dtype
        )
        given = tokens.block_kwargs.get("attn_mask")
        if given is not None:
            mask = mask.masked_fill(given < 0, torch.finfo(mask.dtype).min)
        x = super().run_stages(tokens.with_(block_kwargs={**tokens.block_kwargs, "attn_mask": mask}))
        return {"patches": x, "patch_valid": tokens.is_valid}

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        if can_see is None and tokens.is_valid is not None:  # to be joined with the mask of padding
            can_see = lower_triangle(tokens)
        return super().mask_attention(tokens, can_see)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        valid = None if tokens.is_valid is None else tokens.is_valid.gather(1, visible)
        return super().select(tokens, visible).with_(is_valid=valid)

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        kwargs = dict(tokens.block_kwargs)
        if "rope" in kwargs and tokens.is_valid is None:
            kwargs["rope"] = take_rope(kwargs["rope"], visible)
        elif "rope" in kwargs:  # every image has rotations of its own: (..., B, heads or 1, N, R)
            rope = kwargs["rope"]
            index = visible.view(*[1] * (rope.ndim - 4), len(visible), 1, -1, 1)
            kwargs["rope"] = rope.take_along_dim(index, dim=-2)
        return kwargs

    def split(self, features: Any, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        return super().split(features["patches"] if isinstance(features, Mapping) else features, tokens)
