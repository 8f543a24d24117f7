"""NEPA (Xu et al. 2025, "Next-Embedding Prediction Makes Strong Vision Learners")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones import Backbone, wrap
from patchcast.losses import cosine
from patchcast.objectives import Predictors, and_pixels
from patchcast.plans import RasterOrder
from patchcast.positions import sincos_width
from patchcast.predictors import LinearHead, MLPHead, NoHead, Predictor
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Embeddings
from patchcast.views import Attend


def nepa(backbone: nn.Module | str, *, head_depth: int = 0, pixel_weight: float = 0.0) -> Pretrainer:
    """Predict the embedding of each patch from the patches before it, row by row, with causal attention.

    The features are the predictions: there is no head, unless features and embeddings differ in width. The targets are
    the backbone's own patch embeddings, through which no gradient flows. The loss does not measure success: it is
    lowest when all embeddings are the same. Watch `patchcast.collapse` and a probe.

    >>> import torch
    >>> nepa("test_vit")(torch.randn(2, 3, 160, 160)).predictions.shape
    torch.Size([2, 1, 99, 64])

    Args:
        backbone: a backbone, a timm or torchvision model, or the name of a timm model; see `wrap`.
        head_depth: residual blocks of AIM's head (`MLPHead`), from features to predictions, as wide as the backbone,
            rounded down to a multiple of 4; 0, as in the paper: none.
        pixel_weight: of a second loss, of the next patch's normalized pixels, by the same head or a linear layer; that
            of the embedding has weight 1. Not in the paper, whose weight is 0; see `ijepa`.
    Raises:
        CannotError: if the backbone's attention takes no mask.
        ValueError: if the weight is negative or not a number, or the depth is negative.
    """
    backbone = wrap(backbone)
    embeddings = Embeddings(backbone)
    target, loss = and_pixels(embeddings, cosine, backbone, pixel_weight)
    return Pretrainer(
        backbone,
        plan=RasterOrder(random_prefix=False),
        view=Attend(),
        predictor=_head(backbone, embeddings.outputs, target.outputs, head_depth),
        target=target,
        loss=loss,
    )


def _head(backbone: Backbone, embedding: int, outputs: int, depth: int) -> Predictor:
    if depth:
        grid = backbone.grid(backbone.image_size)
        return MLPHead(backbone.width, outputs, grid=grid, hidden=sincos_width(backbone.width), depth=depth)
    head = NoHead() if backbone.width == embedding else LinearHead(backbone.width, embedding)
    pixels = outputs - embedding
    return Predictors({"features": head, "pixels": LinearHead(backbone.width, pixels)}) if pixels else head
