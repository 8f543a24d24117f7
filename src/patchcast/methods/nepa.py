"""NEPA (Xu et al. 2025, "Next-Embedding Prediction Makes Strong Vision Learners")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import wrap
from patchcast.losses import cosine
from patchcast.objectives import and_pixels
from patchcast.plans import RasterOrder
from patchcast.predictors import LinearHead, NoHead, SideBySide
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Embeddings
from patchcast.views import Attend


def nepa(backbone: nn.Module | str, *, pixel_weight: float = 0.0) -> Pretrainer:
    """Predict the embedding of each patch from the patches before it, row by row, with causal attention.

    The features are the predictions: there is no head, unless features and embeddings differ in width. The targets are
    the backbone's own patch embeddings, through which no gradient flows. The loss does not measure success: it is
    lowest when all embeddings are the same. Watch `patchcast.collapse` and a probe.

    >>> import torch
    >>> nepa("test_vit")(torch.randn(2, 3, 160, 160)).predictions.shape
    torch.Size([2, 1, 99, 64])

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        pixel_weight: of a second loss, of the next patch's normalized pixels, which a linear layer predicts; that of
            the embedding has weight 1. Not in the paper, whose weight is 0; see `ijepa`.
    Raises:
        CannotError: if the backbone's attention takes no mask.
        ValueError: if the weight is negative or not a number.
    """
    backbone = wrap(backbone)
    embeddings = Embeddings(backbone)
    head = NoHead() if backbone.width == embeddings.outputs else LinearHead(backbone.width, embeddings.outputs)
    target, loss = and_pixels(embeddings, cosine, backbone, pixel_weight)
    of_pixels = target.outputs - embeddings.outputs
    return Pretrainer(
        backbone,
        plan=RasterOrder(random_prefix=False),
        view=Attend(),
        predictor=SideBySide([head, LinearHead(backbone.width, of_pixels)]) if of_pixels else head,
        target=target,
        loss=loss,
    )
