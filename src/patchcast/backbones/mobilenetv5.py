"""MobileNetV5: a mobile CNN with attention blocks, whose last stages are fused into one map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import ImageBatch, Tokens, apply_blocks
from patchcast.backbones.conventions import TimmBackbone, width_after
from patchcast.geometry import Grid


class MobileNetV5(TimmBackbone):
    """timm's `MobileNetV5` and `MobileNetV5Encoder`."""

    can = frozenset({"replace", "paint"})
    pixels_stay_in_unit = False
    features_layout = "NCHW"

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model, image_size)
        if self.model.msfa is not None:  # its output has one resolution, whatever the image's
            rows, cols = self.model.msfa.output_resolution
            self.stride = (self.image_size[0] // rows, self.image_size[1] // cols)
        self.takes_any_size = self.model.msfa is None
        self.embed_width = width_after(self.model.conv_stem, self.channels, self.image_size, 1)

    def to_patches(self, images: ImageBatch) -> Tokens:
        x = self.model.conv_stem(images)
        return Tokens(x, Grid(x.shape[2], x.shape[3]), layout="NCHW")

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B D H W"]:
        model, x = self.model, tokens.x
        if model.msfa is None:
            return apply_blocks(model.blocks, x, model)
        fused = [x] if 0 in model.msfa_indices else []
        for index, stage in enumerate(model.blocks, start=1):
            x = apply_blocks(stage, x, model)
            if index in model.msfa_indices:
                fused.append(x)
        return model.msfa(fused)

    def unused(self) -> list[str]:
        return ["conv_head", "norm_head", "classifier"]
