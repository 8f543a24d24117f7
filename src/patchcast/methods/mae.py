"""MAE (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners")."""

from __future__ import annotations

from math import inf

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import Loss, smooth_l1, squared
from patchcast.objectives import SumOfLosses, Targets
from patchcast.plans import GridMask, RandomMask, SeenToo
from patchcast.predictors import decoder_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels, Target
from patchcast.views import Drop


def mae(
    backbone: nn.Module | str,
    *,
    mask_ratio: float = 0.75,
    decoder_width: int | None = None,
    decoder_depth: int = 8,
    decoder_heads: int | None = None,
    decoder_kernel: int | None = None,
    normalize: bool = True,
    visible_weight: float = 0.0,
    mask_cell: int = 1,
    teacher: Target | None = None,
    teacher_weight: float = 1.0,
) -> Pretrainer:
    """Hide most units, run the backbone on the rest, and predict the pixels of the hidden units.

    >>> mae("test_vit").plan
    RandomMask(ratio=0.75)

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        mask_ratio: share of units hidden.
        decoder_width: None: the paper's 512, or about the backbone's width if that is smaller.
        decoder_depth: blocks of the decoder, or layers of a convolutional one.
        decoder_heads: attention heads per block; None: heads of 32 channels, as in the paper.
        decoder_kernel: units per side of the kernel of a convolutional decoder (`ConvDecoder`); None: attention, as in
            the paper. Short runs learn much more from convolutions (`benchmarks/NOTES.md`).
        normalize: predict each unit's pixels normalized by their mean and standard deviation (better features), or raw.
        visible_weight: how much a visible unit counts in the loss, where a hidden one counts 1; 0, as in the paper:
            visible units are not predicted.
        mask_cell: units per side of the squares that are hidden together (`GridMask`): 1 in the paper, 4 in Pixio.
        teacher: features to predict with the pixels, by the same decoder, such as `FrozenFeatures`; not in the paper.
        teacher_weight: of the teacher's loss; that of pixels has weight 1.
    Raises:
        CannotError: if the backbone cannot run on the visible units only.
        ValueError: if the weight of the teacher is not a number above 0, or the decoder refuses a size (`decoder_for`).
    """
    backbone = wrap(backbone)
    pixels = Pixels(backbone.stride, channels=backbone.channels, normalize=normalize)
    target, loss = (pixels, squared) if teacher is None else _with_teacher(pixels, teacher, teacher_weight)
    mask = RandomMask(mask_ratio) if mask_cell == 1 else GridMask(mask_ratio, cell=mask_cell)
    return Pretrainer(
        backbone,
        plan=SeenToo(mask, visible_weight) if visible_weight else mask,
        view=Drop(),
        predictor=decoder_for(
            backbone,
            target.outputs,
            width=decoder_width,
            depth=decoder_depth,
            heads=decoder_heads,
            kernel=decoder_kernel,
        ),
        target=target,
        loss=loss,
    )


def _with_teacher(pixels: Target, teacher: Target, weight: float) -> tuple[Target, Loss]:
    if not 0 < weight < inf:
        raise ValueError(f"teacher_weight is a number above 0; got {weight}")
    targets = Targets({"pixels": pixels, "teacher": teacher})
    return targets, SumOfLosses({"pixels": (squared, 1.0), "teacher": (smooth_l1, weight)}, targets)
