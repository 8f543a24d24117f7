"""SimMIM (Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import absolute
from patchcast.plans import GridMask
from patchcast.predictors import LinearHead
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import replace_or_paint


def simmim(backbone: nn.Module | str, *, mask_ratio: float = 0.6, mask_size: int | None = None) -> Pretrainer:
    """Put a mask token in the place of hidden squares, and read their raw pixels from the features with a linear head.

    Models without a place for a mask token (ConvNeXt, ResNet) see these squares painted over.

    The loss is the mean over every hidden value of the batch: pixels times channels. (The published code divides by the
    number of hidden pixels plus 1e-5, and then by the channels: the same but for the 1e-5.)

    >>> from patchcast.backbones import wrap
    >>> simmim(wrap("test_vit")).plan
    GridMask(ratio=0.6, cell=2)

    Args:
        backbone: or what `wrap` makes one of: a model of timm or torchvision, or its name.
        mask_ratio: share of the image hidden.
        mask_size: pixels per side of what is hidden together, rounded to whole units. None: the paper's 32, or a
            sixth of the image's side where that is less: 32 of 192 pixels is what the paper has.
    """
    backbone = wrap(backbone)
    mask_size = mask_size or min(32, min(backbone.image_size) // 6)
    target = Pixels(backbone.stride, channels=backbone.channels, normalize=False)
    return Pretrainer(
        backbone,
        plan=GridMask(mask_ratio, cell=max(1, round(mask_size / max(backbone.stride)))),
        view=replace_or_paint(backbone),
        predictor=LinearHead(backbone.width, target.outputs),
        target=target,
        loss=absolute,
    )
