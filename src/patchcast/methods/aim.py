"""AIM (El-Nouby et al. 2024, "Scalable Pre-training of Large Autoregressive Image Models")."""

from __future__ import annotations

from patchcast.backbones.base import Backbone
from patchcast.losses import squared
from patchcast.plans import RasterOrder
from patchcast.predictors import LinearHead, MLPHead, Predictor
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import Attend


def aim(
    backbone: Backbone,
    *,
    random_prefix: bool = True,
    head_width: int | None = None,
    head_depth: int = 12,
    normalize: bool = True,
) -> Pretrainer:
    """Predict the next patch from those before it, row by row; the patches of a random prefix see one another.

    >>> from patchcast.backbones import wrap
    >>> aim(wrap("test_vit")).plan
    RasterOrder(random_prefix=True)

    Args:
        random_prefix: draw each image's prefix length from 1..N-1; otherwise attention is plainly causal.
        head_width: of the MLP head: the paper's 2,048 for its trunks (1,536 wide and more), otherwise the backbone's
            width: at 2,048 the head alone has 400 million parameters.
        head_depth: residual blocks of the head; 0 for a linear head.
        normalize: predict each patch's pixels normalised by their own mean and spread, or raw.
    Raises:
        CannotError: if the backbone's attention takes no mask.
    """
    target = Pixels(backbone.stride, channels=backbone.channels, normalize=normalize)
    head: Predictor = LinearHead(backbone.width, target.outputs)
    if head_depth:
        hidden = head_width or (2048 if backbone.width >= 1536 else backbone.width)
        grid = backbone.grid(backbone.image_size)
        head = MLPHead(backbone.width, target.outputs, grid=grid, hidden=hidden, depth=head_depth)
    return Pretrainer(
        backbone, plan=RasterOrder(random_prefix), view=Attend(), predictor=head, target=target, loss=squared
    )
