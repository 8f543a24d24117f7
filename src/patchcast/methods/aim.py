"""AIM (El-Nouby et al. 2024, "Scalable Pre-training of Large Autoregressive Image Models"), and variants."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import Backbone, wrap
from patchcast.losses import cross_entropy, smooth_l1, squared
from patchcast.objectives import and_pixels
from patchcast.plans import Planner, RandomOrder, RasterOrder
from patchcast.positions import sincos_width
from patchcast.predictors import LinearHead, MLPHead, Predictor, TargetQuery
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes, EMAFeatures, Pixels
from patchcast.tokenizers.base import Tokenizer
from patchcast.views import Attend

RASTER = RasterOrder()


def aim(
    backbone: nn.Module | str,
    *,
    plan: Planner = RASTER,
    head_width: int | None = None,
    head_depth: int = 12,
    normalize: bool = True,
) -> Pretrainer:
    """Predict each patch from those before it, row by row; patches of a random prefix attend to one another.

    >>> from patchcast.backbones import wrap
    >>> aim(wrap("test_vit")).plan
    RasterOrder(random_prefix=True)

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        plan: the order. The paper's is row by row; `RasterOrder(random_prefix=False)` is purely causal. With
            `FixedOrder` and `RandomOrder`, the head gets the position of the unit to predict.
        head_width: of the MLP head. None: the paper's 2,048 for trunks as wide as its own (1,536 or more), else the
            backbone's width, rounded down to a multiple of 4. A head of width 2,048 has 400 million parameters.
        head_depth: residual blocks of the head; 0 for a linear head.
        normalize: predict each patch's pixels normalized by their mean and standard deviation, or raw pixels. Only raw
            pixels can be drawn: `patchcast.drawing.completion`.
    Raises:
        CannotError: if the backbone's attention takes no mask.
        ValueError: if the order is random and the head linear.
    """
    backbone = wrap(backbone)
    target = Pixels(backbone.stride, channels=backbone.channels, normalize=normalize)
    head = _head(backbone, target.outputs, plan, head_width, head_depth)
    return Pretrainer(backbone, plan=plan, view=Attend(), predictor=head, target=target, loss=squared)


def aim_codes(
    backbone: nn.Module | str,
    tokenizer: Tokenizer,
    *,
    plan: Planner = RASTER,
    head_width: int | None = None,
    head_depth: int = 12,
) -> Pretrainer:
    """AIM that predicts the next patch's code: that of its mean color in a palette, or that of a codebook of patches.

    >>> import torch
    >>> from patchcast.backbones import wrap
    >>> from patchcast.tokenizers.patches import PatchCodebook
    >>> backbone = wrap("test_vit", img_size=32)
    >>> tokenizer = PatchCodebook(torch.randn(8, 768), backbone.stride)
    >>> aim_codes(backbone, tokenizer, head_depth=1)(torch.randn(2, 3, 32, 32)).predictions.shape
    torch.Size([2, 1, 3, 8])

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        tokenizer: gives each unit a code, as for `patchcast.methods.beit`.
        others: as in `aim`.
    """
    backbone = wrap(backbone)
    target = Codes(tokenizer)
    head = _head(backbone, target.outputs, plan, head_width, head_depth)
    return Pretrainer(backbone, plan=plan, view=Attend(), predictor=head, target=target, loss=cross_entropy)


def aim_features(
    backbone: nn.Module | str,
    *,
    plan: Planner = RASTER,
    head_width: int | None = None,
    head_depth: int = 12,
    momentum: float = 0.996,
    steps: int | None = None,
    pixel_weight: float = 0.0,
) -> Pretrainer:
    """AIM that predicts a teacher's feature of the next patch. The teacher follows the backbone and sees all patches.

    Target and loss are I-JEPA's (Assran et al. 2023). A small loss may mean a collapse: check the features.

    >>> from patchcast.backbones import wrap
    >>> aim_features(wrap("test_vit"), head_depth=1).target.outputs
    64

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        momentum: of the teacher at the first step; it rises linearly to 1.
        steps: optimizer steps until it is 1; None: constant momentum.
        pixel_weight: of a second loss, of normalized pixels that the same head predicts; see `ijepa`.
        others: as in `aim`.
    Raises:
        ValueError: as in `aim`, or if the weight is negative or not a number.
    """
    backbone = wrap(backbone)
    target, loss = and_pixels(EMAFeatures(backbone, momentum=momentum, steps=steps), smooth_l1, backbone, pixel_weight)
    head = _head(backbone, target.outputs, plan, head_width, head_depth)
    return Pretrainer(backbone, plan=plan, view=Attend(), predictor=head, target=target, loss=loss)


def _head(backbone: Backbone, outputs: int, plan: Planner, width: int | None, depth: int) -> Predictor:
    if depth == 0:
        if isinstance(plan, RandomOrder):
            raise ValueError(
                "a random order needs a head that takes the position of the next unit; give head_depth >= 1"
            )
        return LinearHead(backbone.width, outputs)
    hidden = width or (2048 if backbone.width >= 1536 else sincos_width(backbone.width))
    grid = backbone.grid(backbone.image_size)
    query = None if isinstance(plan, RasterOrder) else TargetQuery(grid, hidden)
    return MLPHead(backbone.width, outputs, grid=grid, hidden=hidden, depth=depth, query=query)
