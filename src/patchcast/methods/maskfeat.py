"""MaskFeat (Wei et al. 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training"), with HOG."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import squared
from patchcast.objectives import and_pixels
from patchcast.plans import BlockMask
from patchcast.predictors import head_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import HOG
from patchcast.views import replace_or_paint


def maskfeat(
    backbone: nn.Module | str,
    *,
    mask_ratio: float = 0.4,
    bins: int = 9,
    pixel_weight: float = 0.0,
    head_width: int | None = None,
    head_depth: int | None = None,
    head_kernel: int | None = None,
) -> Pretrainer:
    """Replace hidden blocks by a mask token, and predict the histograms of oriented gradients of each hidden unit.

    For models that take no mask token (ConvNeXt, ResNet), the blocks are painted over.

    >>> maskfeat("test_vit").target.outputs  # 9 directions, 3 channels, 4 cells
    108

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        mask_ratio: share of units hidden.
        bins: directions of gradients that a histogram tells apart.
        pixel_weight: of a second loss, of normalized pixels that the same head predicts; not in the paper, whose weight
            is 0; see `ijepa`.
        head_width: of a head of convolutions; None: 128, or about the backbone's width if that is smaller.
        head_depth: its layers; None: 3.
        head_kernel: units per side of the kernel of a head of convolutions over all units (`NeighborHead`); None: one
            linear layer, as in the paper. See `benchmarks/NOTES.md` for what it is worth.
    Raises:
        ValueError: if the weight is negative or not a number, or the head refuses a size (`head_for`).
    """
    backbone = wrap(backbone)
    histograms = HOG(backbone.stride, channels=backbone.channels, bins=bins)
    target, loss = and_pixels(histograms, squared, backbone, pixel_weight)
    return Pretrainer(
        backbone,
        plan=BlockMask(mask_ratio),
        view=replace_or_paint(backbone),
        predictor=head_for(backbone, target.outputs, width=head_width, depth=head_depth, kernel=head_kernel),
        target=target,
        loss=loss,
    )
