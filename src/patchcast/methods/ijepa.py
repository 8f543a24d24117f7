"""I-JEPA (Assran et al. 2023).

"Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".
"""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import smooth_l1
from patchcast.objectives import and_pixels
from patchcast.plans import MultiBlock
from patchcast.predictors import decoder_for, small_normal, usable_width
from patchcast.pretrainer import Pretrainer
from patchcast.targets import EMAFeatures
from patchcast.views import Drop, replace_or_paint


def ijepa(
    backbone: nn.Module | str,
    *,
    predictor_width: int | None = None,
    predictor_depth: int = 6,
    predictor_heads: int | None = None,
    predictor_kernel: int | None = None,
    momentum: float = 0.996,
    steps: int | None = None,
    layers: int | None = None,
    local: bool = False,
    pixel_weight: float = 0.0,
) -> Pretrainer:
    """Predict, from one large block, a teacher's features of several smaller blocks.

    The teacher is a moving average of the backbone. If the backbone cannot run on the visible units only, hidden units
    are replaced by a mask token or painted over. The loss does not measure success: it may rise while features improve,
    and is lowest when they collapse. Watch `patchcast.collapse` and a probe.

    >>> from patchcast.backbones import wrap
    >>> ijepa(wrap("test_vit")).plan.targets
    4

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        predictor_width: None: half of the backbone's width, at most 384, as in the paper for ViT-B and larger.
        predictor_depth: blocks of the predictor: the paper's 6 for ViT-B (12 for ViT-L and ViT-H); or its layers of
            convolutions.
        predictor_heads: attention heads in each, 32 channels wide if None (the paper: as many as in the encoder).
        predictor_kernel: units per side of the kernel of a convolutional predictor (`ConvDecoder`); None: attention, as
            in the paper.
        momentum: of the teacher at the first step.
        steps: optimizer steps over which the momentum rises to 1; None: constant momentum.
        layers: number of the teacher's last blocks whose features are averaged; None: the paper's, its final features.
        local: take away from the target what follows from the position, and the mean over the image (`EMAFeatures`);
            not in the paper. In short runs on few images it is the better target.
        pixel_weight: of a second loss, of normalized pixels that the same predictor predicts; that of features has
            weight 1. Not in the paper, whose weight is 0. In short runs on few images the features alone end below
            those of an untrained network, because the teacher knows nothing yet (`benchmarks/NOTES.md`).
    Raises:
        ValueError: if the weight is negative or not a number, or the predictor refuses a size (`decoder_for`).
    """
    backbone = wrap(backbone)
    teacher = EMAFeatures(backbone, momentum=momentum, steps=steps, layers=layers, local=local)
    target, loss = and_pixels(teacher, smooth_l1, backbone, pixel_weight)
    predictor = decoder_for(
        backbone,
        target.outputs,
        width=predictor_width or usable_width(min(384, backbone.width // 2)),
        depth=predictor_depth,
        heads=predictor_heads,
        kernel=predictor_kernel,
    )
    return Pretrainer(
        backbone,
        plan=MultiBlock(),
        view=Drop() if "drop" in backbone.can else replace_or_paint(backbone),
        predictor=predictor.apply(small_normal),
        target=target,
        loss=loss,
    )
