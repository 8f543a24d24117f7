"""NEPA (Xu et al. 2025, "Next-Embedding Prediction Makes Strong Vision Learners")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import cosine
from patchcast.plans import RasterOrder
from patchcast.predictors import LinearHead, NoHead
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Embeddings
from patchcast.views import Attend


def nepa(backbone: nn.Module | str) -> Pretrainer:
    """Predict the embedding of each patch from the patches before it, row by row, with causal attention.

    The features are the predictions: there is no head, unless features and embeddings differ in width. The targets are
    the backbone's own patch embeddings, through which no gradient flows. The loss does not measure success: it is
    lowest when all embeddings are the same. Watch `patchcast.collapse` and a probe.

    >>> import torch
    >>> nepa("test_vit")(torch.randn(2, 3, 160, 160)).predictions.shape
    torch.Size([2, 1, 99, 64])

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
    Raises:
        CannotError: if the backbone's attention takes no mask.
    """
    backbone = wrap(backbone)
    target = Embeddings(backbone)
    is_even = backbone.width == target.outputs
    return Pretrainer(
        backbone,
        plan=RasterOrder(random_prefix=False),
        view=Attend(),
        predictor=NoHead() if is_even else LinearHead(backbone.width, target.outputs),
        target=target,
        loss=cosine,
    )
