"""Segment Anything's image encoder: a ViT over a map of tokens, with windows and a convolutional neck."""

from __future__ import annotations

from jaxtyping import Float
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class SAM(TimmBackbone):
    """timm's `VisionTransformerSAM`."""

    can = frozenset({"replace", "paint"})
    takes_any_size = True
    features_layout = "NCHW"

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        self.embed_width = self.model.embed_dim

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed(images)
        return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")

    def add_positions(self, patches: Tokens) -> Tokens:
        x = patches.x
        if self.model.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(self.model.pos_embed, patches.grid)
        return patches.with_(x=self.model.norm_pre(self.model.pos_drop(x)))

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.blocks]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B D H W"]:
        return self.model.neck(apply_blocks(self.model.blocks, tokens.x, self.model).permute(0, 3, 1, 2))
