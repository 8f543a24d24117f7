"""Gemma 4's vision encoder: positions by id, as a table and as rotations."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from timm.models.naflexvit import batch_patchify
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, additive, apply_blocks
from patchcast.backbones.sequence import Sequence, lower_triangle
from patchcast.geometry import take


class Gemma4(Sequence):
    """timm's `Gemma4VitEncoder` and `Gemma4VitClassifier`."""

    written_out: ClassVar = {
        "": frozenset(),
        "patch_embed": frozenset({"_default_patch_coord", "_position_embeddings"}),
        "encoder": frozenset(),
        "encoder.patch_embed": frozenset({"_default_patch_coord", "_position_embeddings"}),
    }

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        if getattr(model, "encoder_pool", "") == "soft":
            raise ValueError("this Gemma4VitClassifier pools inside its encoder: build it with encoder_pool=''")
        super().__init__(model, image_size)
        self.stride = tuple(self.encoder.patch_size)
        self.takes_any_size = True

    @property
    def encoder(self) -> Any:
        return getattr(self.model, "encoder", self.model)

    def to_patches(self, images: ImageBatch) -> Tokens:
        assert isinstance(images, Tensor)
        embed = self.encoder.patch_embed
        x, _ = batch_patchify(images, embed.patch_size, pad=False, channels_last=False)
        x = embed.input_proj((2 * (x - 0.5)).to(embed.input_proj.weight.dtype))
        return Tokens(x, self.grid(images))

    def place(self, patches: Tokens) -> Tokens:
        embed, (rows, cols) = self.encoder.patch_embed, patches.grid
        coord, _ = embed._default_patch_coord(len(patches.x), rows, cols, patches.x.device)
        ids = coord.flip(dims=(-1,))
        x = patches.x + embed._position_embeddings(ids, None)
        cos, sin = self.encoder.rotary_emb(x, ids)
        return patches.with_(x=x, block_kwargs={"rope_cos": cos, "rope_sin": sin})

    def block_modules(self) -> list[nn.Module]:
        return [*self.encoder.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        return apply_blocks(self.encoder.blocks, tokens.x, self.encoder, **tokens.block_kwargs)

    def block_outputs(
        self, images: ImageBatch, blocks: int | Sequence_[int] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        assert isinstance(images, Tensor)
        indices, grid = blocks if blocks is None or isinstance(blocks, int) else list(blocks), self.grid(images)
        # timm reads the grid back from the positions on the device; a GPU would have to wait.
        rows = self.model.forward_intermediates(
            images, indices=indices, norm=False, intermediates_only=True, output_fmt="NLC"
        )
        return [each.transpose(1, 2).unflatten(2, grid).contiguous() for each in rows]

    def positions_of(self, visible: Int[Tensor, "B V"], tokens: Tokens) -> dict[str, Any]:
        return {name: take(rotation, visible) for name, rotation in tokens.block_kwargs.items()}

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        can_see = lower_triangle(tokens) if can_see is None else can_see
        return tokens.with_(block_kwargs={**tokens.block_kwargs, "attn_mask": additive(can_see, tokens.x)})

    def unused(self) -> list[str]:
        return ["norm", "head"] if self.encoder is not self.model else ["pooler"]
