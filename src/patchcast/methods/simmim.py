"""SimMIM (Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import absolute
from patchcast.plans import GridMask
from patchcast.predictors import head_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import replace_or_paint


def simmim(
    backbone: nn.Module | str,
    *,
    mask_ratio: float = 0.6,
    mask_size: int | None = None,
    normalize: bool = False,
    head_width: int | None = None,
    head_depth: int | None = None,
    head_kernel: int | None = None,
) -> Pretrainer:
    """Replace hidden squares by a mask token, and predict their raw pixels with a linear head.

    For models that take no mask token (ConvNeXt, ResNet), the squares are painted over.

    The loss is the mean over every hidden value of the batch: pixels times channels. (The published code divides by the
    number of hidden pixels plus 1e-5, and then by the channels: the same up to the 1e-5.)

    >>> from patchcast.backbones import wrap
    >>> simmim(wrap("test_vit")).plan
    GridMask(ratio=0.6, cell=2)

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        mask_ratio: share of the image hidden.
        mask_size: pixels per side of a hidden square, rounded to whole units. None: the paper's 32, or a sixth of the
            image's side if that is less, which is the paper's ratio of 32 to 192.
        normalize: predict each unit's pixels normalized by their mean and standard deviation, as in MAE, or raw.
        head_width: of a head of convolutions; None: 128, or about the backbone's width if that is smaller.
        head_depth: its layers; None: 3.
        head_kernel: units per side of the kernel of a head of convolutions over all units (`NeighborHead`); None: one
            linear layer, as in the paper. See `benchmarks/NOTES.md` for what it is worth.
    Raises:
        ValueError: if the head refuses a size (`head_for`).
    """
    backbone = wrap(backbone)
    mask_size = mask_size or min(32, min(backbone.image_size) // 6)
    target = Pixels(backbone.stride, channels=backbone.channels, normalize=normalize)
    return Pretrainer(
        backbone,
        plan=GridMask(mask_ratio, cell=max(1, round(mask_size / max(backbone.stride)))),
        view=replace_or_paint(backbone),
        predictor=head_for(backbone, target.outputs, width=head_width, depth=head_depth, kernel=head_kernel),
        target=target,
        loss=absolute,
    )
