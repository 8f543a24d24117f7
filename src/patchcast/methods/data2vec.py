"""data2vec 2 (Baevski et al. 2023).

"Efficient Self-supervised Learning with Contextualized Target Representations for Vision, Speech and Language".
"""

from __future__ import annotations

from math import gcd

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import squared
from patchcast.objectives import and_pixels
from patchcast.plans import InverseBlockMask
from patchcast.predictors import GROUPS, ConvDecoder, usable_width
from patchcast.pretrainer import Pretrainer
from patchcast.targets import EMAFeatures, even_blocks
from patchcast.views import Drop, replace_or_paint


def data2vec(
    backbone: nn.Module | str,
    *,
    mask_ratio: float = 0.8,
    masks: int = 16,
    layers: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int = 6,
    momentum: float = 0.9998,
    steps: int | None = None,
    local: bool = False,
    pixel_weight: float = 0.0,
) -> Pretrainer:
    """Predict the mean over a teacher's last blocks at hidden units. The teacher is a moving average of the backbone.

    Each image has several masks per step, and the teacher runs once for all of them. Two parts of the paper are left
    out: the loss on the class token, and noise in place of the mask token. If the backbone cannot drop units, hidden
    units are replaced by a mask token or painted over. As in `ijepa`, the loss does not measure success: watch
    `patchcast.collapse` and a probe.

    >>> data2vec("test_vit").target.layers
    5

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        mask_ratio: share of units hidden.
        masks: per image and training step.
        layers: number of the teacher's last blocks to average; None: 5/6 of the blocks with one width and grid, as the
            paper's 10 of 12, or the teacher's final features if timm does not return the outputs of blocks.
        decoder_width: None: the paper's 768, or about the backbone's width if that is smaller.
        decoder_depth: layers of the decoder.
        momentum: of the teacher at the first step. Use less than the paper's if you train for far fewer steps than its
            375,300.
        steps: optimizer steps until the momentum is 1 (in the paper, 0.99999); None: constant momentum.
        local: take away from the target what follows from the position, and the mean over the image (`EMAFeatures`);
            not in the paper.
        pixel_weight: of a second loss, of normalized pixels that the same decoder predicts; see `ijepa`.
    Raises:
        ValueError: if the weight is negative or not a number.
    """
    backbone = wrap(backbone)
    width = decoder_width or usable_width(min(768, backbone.width))
    blocks = even_blocks(backbone)
    if layers is None and blocks:
        layers = max(1, round(blocks * 5 / 6))
    teacher = EMAFeatures(backbone, momentum=momentum, steps=steps, layers=layers, local=local)
    target, loss = and_pixels(teacher, squared, backbone, pixel_weight)
    embed, head = nn.Linear(backbone.width, width), nn.Linear(width, target.outputs)
    return Pretrainer(
        backbone,
        plan=InverseBlockMask(mask_ratio),
        view=Drop() if "drop" in backbone.can else replace_or_paint(backbone),
        predictor=ConvDecoder(width, depth=decoder_depth, groups=gcd(width, GROUPS), embed=embed, head=head),
        target=target,
        loss=loss,
        repeat=masks,
    )
