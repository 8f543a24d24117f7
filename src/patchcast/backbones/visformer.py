"""Visformer: convolutions first, attention later, with a table of positions per stage."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class Visformer(TimmBackbone):
    """timm's `Visformer`."""

    can = frozenset({"replace", "paint"})
    pixels_stay_in_unit = False
    features_layout = "NCHW"

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size, reduction=32)
        self.embed_width = self.model.patch_embed1.proj.out_channels

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed1(images if self.model.stem is None else self.model.stem(images))
        return Tokens(x, Grid(x.shape[2], x.shape[3]), layout="NCHW")

    def add_positions(self, patches: Tokens) -> Tokens:
        if self.model.pos_embed1 is None:
            return patches
        return patches.with_(x=self.model.pos_drop(patches.x + self.model.pos_embed1))

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B D H W"]:
        model = self.model
        x = apply_blocks(model.stage1, tokens.x, model)
        later = [
            (model.patch_embed2, model.pos_embed2, model.stage2),
            (model.patch_embed3, model.pos_embed3, model.stage3),
        ]
        for patch_embed, positions, stage in later:
            if patch_embed is not None:
                x = patch_embed(x)
                x = x if positions is None else model.pos_drop(x + positions)
            x = apply_blocks(stage, x, model)
        return model.norm(x)
