"""BEiT (Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import cross_entropy
from patchcast.plans import BlockMask
from patchcast.predictors import head_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes
from patchcast.tokenizers.base import Tokenizer
from patchcast.views import replace_or_paint


def beit(
    backbone: nn.Module | str,
    tokenizer: Tokenizer,
    *,
    mask_ratio: float = 0.4,
    head_width: int | None = None,
    head_depth: int | None = None,
    head_kernel: int | None = None,
) -> Pretrainer:
    """Replace hidden blocks by a mask token, and predict the tokenizer's code of each hidden unit.

    For models that take no mask token (ConvNeXt, ResNet), the blocks are painted over.

    >>> import torch
    >>> from patchcast.backbones import wrap
    >>> from patchcast.tokenizers.patches import PatchCodebook
    >>> backbone = wrap("test_vit")
    >>> tokenizer = PatchCodebook.fit([torch.rand(8, 3, 160, 160)], stride=backbone.stride, vocabulary=64)
    >>> beit(backbone, tokenizer).plan.ratio
    0.4

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        tokenizer: gives every unit of an image a code: `PatchCodebook`, or anything with `vocabulary` and `encode`.
        mask_ratio: share of units hidden.
        head_width: of a head of convolutions; None: 128, or about the backbone's width if that is smaller.
        head_depth: its layers; None: 3.
        head_kernel: units per side of the kernel of a head of convolutions over all units (`NeighborHead`); None: one
            linear layer, as in the paper. See `benchmarks/NOTES.md` for what it is worth.
    Raises:
        ValueError: if the head refuses a size (`head_for`).
    """
    backbone = wrap(backbone)
    target = Codes(tokenizer)
    return Pretrainer(
        backbone,
        plan=BlockMask(mask_ratio),
        view=replace_or_paint(backbone),
        predictor=head_for(backbone, target.outputs, width=head_width, depth=head_depth, kernel=head_kernel),
        target=target,
        loss=cross_entropy,
    )
