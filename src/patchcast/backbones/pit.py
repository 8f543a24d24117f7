"""PiT: a ViT that pools its tokens by convolution between stages."""

from __future__ import annotations

from jaxtyping import Float
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid, to_rows


class PiT(TimmBackbone):
    """timm's `PoolingVisionTransformer`.

    Its own `forward_features` returns only the normalized class tokens. `forward_stages` also returns the map of units,
    which this model does not normalize.
    """

    can = frozenset({"replace", "paint"})
    pixels_stay_in_unit = False

    def __init__(self, model: PoolingVisionTransformer, image_size: tuple[int, int] | None = None) -> None:
        halvings = len(model.transformers) - 1
        super().__init__(model, image_size, reduction=model.patch_embed.conv.stride[0] * 2**halvings)
        self.embed_width = self.model.patch_embed.conv.out_channels
        self.features_prefix = self.model.cls_token.shape[1]

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.patch_embed(images)
        return Tokens(x, Grid(x.shape[2], x.shape[3]), layout="NCHW")

    def add_positions(self, patches: Tokens) -> Tokens:
        return patches.with_(x=self.model.pos_drop(patches.x + self.model.pos_embed))

    def run_stages(self, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B D H W"]]:
        x, cls_tokens = self.model.transformers((tokens.x, self.model.cls_token.expand(len(tokens.x), -1, -1)))
        return self.model.norm(cls_tokens), x

    def own_features(self, features: tuple[Tensor, Tensor]) -> Float[Tensor, "B R D"]:
        return features[0]

    def split(
        self, features: tuple[Tensor, Tensor], tokens: Tokens
    ) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        return features[0], to_rows(features[1], "NCHW")

    def prefix_only(self) -> list[str]:
        return ["norm"]
