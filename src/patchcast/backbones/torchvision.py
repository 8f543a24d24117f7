"""torchvision's VisionTransformer and SwinTransformer, whose own `forward` goes straight to the logits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from patchcast.backbones.backbone import Backbone, ImageBatch, Tokens
from patchcast.backbones.changes import check_methods, foreign_parts, warn_of_foreign
from patchcast.geometry import Grid, take


class TorchvisionViT(Backbone):
    """torchvision's `VisionTransformer`: `model.heads(forward(images)[:, 0])` is its own output.

    Its blocks take no mask.

    >>> from torchvision.models import vit_b_16
    >>> backbone = TorchvisionViT(vit_b_16(image_size=32))
    >>> backbone.units(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 4, 768])
    """

    can = frozenset({"drop", "replace", "paint"})
    features_prefix = 1

    def __init__(self, model: VisionTransformer, image_size: tuple[int, int] | None = None) -> None:
        check_methods(
            model, {"": frozenset({"_process_input"}), "encoder": frozenset()}, harmless=frozenset({"__init__"})
        )
        super().__init__(model)
        if foreign := foreign_parts(model.encoder.layers.children()):
            self.can = self.can - {"drop"}
            warn_of_foreign(self.name, foreign)
        self.image_size = (model.image_size, model.image_size)
        self.stride = (model.patch_size, model.patch_size)
        self.width = self.embed_width = model.hidden_dim
        self.channels = next(model.conv_proj.parameters()).shape[1]

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(self.model._process_input(images), self.grid(images))

    def add_positions(self, patches: Tokens) -> Tokens:
        return self.with_class_token(patches, self.model.class_token.expand(len(patches.x), -1, -1))

    def add_positions_hiding(
        self, patches: Tokens, is_hidden_prefix: Bool[Tensor, "B R"], mask_token: Float[Tensor, " E"] | None
    ) -> Tokens:
        token = torch.zeros_like(self.model.class_token) if mask_token is None else mask_token
        return self.with_class_token(patches, torch.where(is_hidden_prefix[..., None], token, self.model.class_token))

    def with_class_token(self, patches: Tokens, class_token: Float[Tensor, "B 1 D"]) -> Tokens:
        encoder = self.model.encoder
        x = torch.cat([class_token, patches.x], dim=1)
        return patches.with_(x=encoder.dropout(x + encoder.pos_embedding), prefix=1)

    def block_modules(self) -> list[nn.Module]:
        return [*self.model.encoder.layers]

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        return self.model.encoder.ln(self.model.encoder.layers(tokens.x))

    def keep_rows(self, tokens: Tokens, rows: Int[Tensor, "B K"]) -> Tokens:
        if tokens.visible is not None or tokens.rows is not None:
            raise ValueError("tokens were dropped already; give all tokens to keep in one call")
        return tokens.with_(x=take(tokens.x, rows), prefix=0, rows=rows)

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        x = torch.cat([tokens.x[:, :1], take(tokens.x[:, 1:], visible)], dim=1)
        return tokens.with_(x=x, visible=visible)

    def unused(self) -> list[str]:
        return ["heads"]


class TorchvisionSwin(Backbone):
    """torchvision's `SwinTransformer`, V1 and V2. Windows are padded, so it takes any size that 32 divides."""

    can = frozenset({"replace", "paint"})
    takes_any_size = True
    features_layout = "NHWC"

    def __init__(self, model: SwinTransformer, image_size: tuple[int, int] | None = None) -> None:
        check_methods(model, {"": frozenset()}, harmless=frozenset({"__init__"}))
        super().__init__(model)
        stem = model.features[0][0]
        self.image_size = image_size or (256 if "V2" in type(model.features[1][0]).__name__ else 224,) * 2
        reduction = stem.stride[0] * 2 ** (len(model.features) // 2 - 1)
        self.stride = (reduction, reduction)
        self.width, self.embed_width = model.head.in_features, stem.out_channels
        self.channels = stem.in_channels

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.features[0](images)
        return Tokens(x, Grid(x.shape[1], x.shape[2]), layout="NHWC")

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B H W D"]:
        return self.model.norm(self.model.features[1:](tokens.x))
