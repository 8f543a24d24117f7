"""ImageGPT (Chen et al. 2020, "Generative Pretraining from Pixels")."""

from __future__ import annotations

from torch import nn

from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.losses import cross_entropy
from patchcast.plans import FromStart, RandomMask
from patchcast.predictors import LinearHead
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes
from patchcast.tokenizers.encoded import Encoded
from patchcast.views import Blank, Shift


def imagegpt(backbone: ImageGPTBackbone) -> Pretrainer:
    """Predict each pixel's color from those before it, row by row; the loss is in nats per code.

    >>> import torch
    >>> from patchcast.geometry import Grid
    >>> from patchcast.backbones.imagegpt_network import ImageGPT
    >>> from patchcast.tokenizers.palette import Palette
    >>> palette = Palette(torch.linspace(-1, 1, 16)[:, None])
    >>> network = ImageGPT(Grid(8, 8), palette.vocabulary, depth=2, width=32, heads=4)
    >>> pretrainer = imagegpt(ImageGPTBackbone(network, palette, channels=1))
    >>> pretrainer(torch.rand(2, 1, 8, 8)).loss.item()  # ln 16: the head starts from zero
    2.7725...

    The paper trains with Adam (betas 0.9 and 0.95), 128 images a step, one million steps, one epoch of warm-up and a
    cosine to zero, without weight decay or dropout. It uses the largest stable learning rate of 0.01, 0.003, 0.001, ...

    Raises:
        ValueError: if the backbone is not an `ImageGPTBackbone`.
        CannotError: if its network is not causal.
    """
    _check(backbone)
    return Pretrainer(
        backbone,
        plan=FromStart(),
        view=Shift(),
        predictor=_head(backbone),
        target=Codes(backbone.tokenizer),
        loss=cross_entropy,
    )


def imagegpt_masked(backbone: ImageGPTBackbone, *, mask_ratio: float = 0.15) -> Pretrainer:
    """Predict the colors of hidden pixels from all others: the paper's BERT objective (section 2.1).

    The paper hides each pixel with probability 0.15. Here that share of the pixels of every image is hidden (rounded to
    the nearest number), so that the mean over images and the mean over pixels are the same.

    Raises:
        ValueError: if the backbone is not an `ImageGPTBackbone`.
        CannotError: if its network is causal.
    """
    _check(backbone)
    return Pretrainer(
        backbone,
        plan=RandomMask(mask_ratio, count=hidden_to_the_nearest),
        view=Blank(),
        predictor=_head(backbone),
        target=Codes(backbone.tokenizer),
        loss=cross_entropy,
    )


def hidden_to_the_nearest(count: int | float, ratio: float) -> int:
    """How many of `count` pixels are hidden.

    >>> hidden_to_the_nearest(1024, 0.15)
    154
    """
    return round(count * ratio)


def on_codes(pretrainer: Pretrainer) -> Pretrainer:
    """A pretrainer that shares its weights with the given one and takes codes (`CodeSet`) instead of images.

    It trains without decoding and encoding every image again.

    >>> import torch
    >>> from patchcast.geometry import Grid
    >>> from patchcast.backbones.imagegpt_network import ImageGPT
    >>> from patchcast.tokenizers.palette import Palette
    >>> palette = Palette(torch.tensor([[-1.0], [1.0]]))
    >>> pretrainer = imagegpt(ImageGPTBackbone(ImageGPT(Grid(2, 2), 2, depth=1, width=8, heads=2), palette, channels=1))
    >>> images = torch.rand(3, 1, 2, 2)
    >>> codes = palette.encode(images).view(3, 1, 2, 2)
    >>> bool(on_codes(pretrainer)(codes).loss == pretrainer(images).loss)
    True

    Raises:
        ValueError: if the backbone is not an ImageGPT.
    """
    backbone = pretrainer.backbone
    if not isinstance(backbone, ImageGPTBackbone):
        raise ValueError(f"{backbone.name} takes pixels only; an ImageGPT takes codes as well")
    codes = Encoded(backbone.tokenizer.vocabulary)
    return Pretrainer(
        ImageGPTBackbone(backbone.model, codes, channels=1),
        plan=pretrainer.plan,
        view=pretrainer.view,
        predictor=pretrainer.predictor,
        target=Codes(codes),
        loss=pretrainer.loss,
    )


def _check(backbone: object) -> None:
    if not isinstance(backbone, ImageGPTBackbone):
        raise ValueError(
            f"ImageGPT needs its own network: give ImageGPTBackbone(ImageGPT(grid, codes, ...), palette, "
            f"channels=3); got {type(backbone).__name__}"
        )


def _head(backbone: ImageGPTBackbone) -> LinearHead:
    """A head without bias, not tied to the embedding, and initialized to zero (appendix A.1)."""
    head = LinearHead(backbone.width, backbone.tokenizer.vocabulary, bias=False)
    nn.init.zeros_(head.project.weight)
    return head
