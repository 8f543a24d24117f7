"""Distillation on hidden units: predict a frozen teacher's features (as in Wei et al. 2022; Fang et al. 2023)."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import smooth_l1
from patchcast.plans import RandomMask, SeenToo
from patchcast.predictors import decoder_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Target
from patchcast.views import Drop, replace_or_paint


def distill(
    backbone: nn.Module | str,
    teacher: Target,
    *,
    mask_ratio: float = 0.5,
    visible_weight: float = 1.0,
    decoder_width: int | None = None,
    decoder_depth: int = 2,
    decoder_heads: int | None = None,
    decoder_kernel: int | None = None,
) -> Pretrainer:
    """Hide half of the units, and predict a trained network's features of all of them.

    If the backbone cannot run on the visible units only, hidden units are replaced by a mask token or painted over.

    >>> from patchcast.targets import FrozenFeatures
    >>> student, teacher = wrap("test_vit", img_size=32, patch_size=8), wrap("test_resnet", img_size=64)
    >>> distill(student, FrozenFeatures(teacher, student.stride, blocks=(2,), size=(64, 64))).target.outputs
    48

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        teacher: the features to predict: `FrozenFeatures`.
        mask_ratio: share of units hidden.
        visible_weight: how much a visible unit counts in the loss, where a hidden one counts 1; 0: not at all.
        decoder_width: None: 512, or about the backbone's width if that is smaller.
        decoder_depth: blocks of the decoder, or layers of a convolutional one.
        decoder_heads: attention heads per block; None: heads of 32 channels.
        decoder_kernel: units per side of the kernel of a convolutional decoder (`ConvDecoder`); None: attention.
    """
    backbone = wrap(backbone)
    mask = RandomMask(mask_ratio)
    return Pretrainer(
        backbone,
        plan=SeenToo(mask, visible_weight) if visible_weight else mask,
        view=Drop() if "drop" in backbone.can else replace_or_paint(backbone),
        predictor=decoder_for(
            backbone,
            teacher.outputs,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            kernel=decoder_kernel,
        ),
        target=teacher,
        loss=smooth_l1,
    )
