"""CoaT: four scales in series, and in some variants once more in parallel."""

from __future__ import annotations

from jaxtyping import Float
from timm.models.coat import insert_cls, remove_cls
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens
from patchcast.backbones.conventions import TimmBackbone
from patchcast.geometry import Grid


class CoaT(TimmBackbone):
    """timm's `CoaT`. Units are those of the coarsest scale; the parallel variants return three scales."""

    can = frozenset({"replace", "paint"})
    features_prefix = 1

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size, reduction=32)
        self.embed_width = self.model.patch_embed1.proj.out_channels

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(self.model.patch_embed1(images), Grid(*self.model.patch_embed1.grid_size))

    def run_stages(self, tokens: Tokens) -> Tensor | list[Tensor]:
        model, x, size = self.model, tokens.x, tuple(tokens.grid)
        sizes, scales = [], []
        for scale in "1234":
            if scale > "1":
                patch_embed = getattr(model, f"patch_embed{scale}")
                x = patch_embed(remove_cls(x).reshape(len(x), *size, -1).permute(0, 3, 1, 2).contiguous())
                size = tuple(patch_embed.grid_size)
            x = insert_cls(x, getattr(model, f"cls_token{scale}"))
            for block in getattr(model, f"serial_blocks{scale}"):
                x = block(x, size=size)
            sizes.append(size)
            scales.append(x)
        if model.parallel_blocks is None:
            return model.norm4(x)
        x1, x2, x3, x4 = scales
        for block in model.parallel_blocks:
            x2, x3, x4 = model.cpe2(x2, sizes[1]), model.cpe3(x3, sizes[2]), model.cpe4(x4, sizes[3])
            x1, x2, x3, x4 = block(x1, x2, x3, x4, sizes=sizes)
        return [model.norm2(x2), model.norm3(x3), model.norm4(x4)]

    def split(
        self, features: Tensor | list[Tensor], tokens: Tokens
    ) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        return super().split(features[-1] if isinstance(features, list) else features, tokens)

    def not_in_features(self) -> list[str]:
        if self.model.parallel_blocks is None:
            return []
        last = f"parallel_blocks.{len(self.model.parallel_blocks) - 1}"
        return ["norm2", "norm3", *[f"{last}.{norm}" for norm in ("norm22", "norm23")]]

    def unused(self) -> list[str]:
        return [*super().unused(), "aggregate"]
