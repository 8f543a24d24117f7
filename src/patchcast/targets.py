"""Targets: what is to be predicted, for every unit of the image. They know nothing of plans."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from patchcast.backbones.backbone import Backbone, ImageBatch, pixels_of
from patchcast.geometry import Grid
from patchcast.tokenizers.base import Draws, Tokenizer


class Target(nn.Module):
    """`(images) -> one vector for every unit of the grid`.

    Attributes:
        outputs: values to predict for a unit.
        has_noise_floor: whether the loss on noise has a floor; not if the target is learnt along, and can collapse.
        is_drawn: whether predictions can be drawn: `to_pixels`.
        from_image: what `to_pixels` takes from the image itself, in words, for the caption of a picture.
    """

    outputs: int
    has_noise_floor: bool = True
    is_drawn: bool = False
    from_image: str = ""

    def forward(self, images: ImageBatch) -> Num[Tensor, "B N T"]:
        """Targets of every unit, row by row: vectors, or a code each."""
        raise NotImplementedError

    def to_pixels(
        self, predictions: Float[Tensor, "B N T"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Predictions of every unit as pixels; what the target leaves out (mean and spread) is taken from `images`."""
        raise ValueError(f"{type(self).__name__} are no pixels: their predictions cannot be drawn")

    def blind(self, targets: Num[Tensor, "B G P T"]) -> Float[Tensor, "B G P K"]:
        """The best prediction of these that looks at no image: what an honest method is left with on noise."""
        return torch.zeros_like(targets)

    def update(self, backbone: Backbone) -> None:
        """Called by `Pretrainer.after_step`; targets that follow the backbone do so here."""


class Pixels(Target):
    """The pixels of each unit, in the order row, column, channel.

    >>> import torch
    >>> Pixels((2, 2), channels=1, normalize=False)(torch.arange(8.).view(1, 1, 2, 4)).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]

    Args:
        stride: pixels per side of a unit, (rows, cols).
        normalize: subtract each unit's mean and divide by its standard deviation, with the unbiased variance and 1e-6
            under the root (He et al. 2022, section 3, "reconstruction target").
    Raises:
        ValueError: if a unit of one value is to be normalised.
    """

    is_drawn = True

    def __init__(self, stride: tuple[int, int], *, channels: int, normalize: bool = True) -> None:
        super().__init__()
        self.stride, self.channels, self.normalize = stride, channels, normalize
        self.outputs = stride[0] * stride[1] * channels
        if normalize:
            self.from_image = "normalized targets: the mean and contrast of each unit are the image's own"
        if normalize and self.outputs < 2:
            raise ValueError("a unit of one pixel and one channel has no spread to normalize by; use normalize=False")

    def forward(self, images: ImageBatch) -> Float[Tensor, "B N T"]:
        units = patchify(pixels_of(images), self.stride)
        if not self.normalize:
            return units
        variance, mean = _spread(units)
        return (units - mean) / (variance + 1e-6).sqrt()

    def to_pixels(
        self, predictions: Float[Tensor, "B N T"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        (down, right), (height, width) = self.stride, images.shape[-2:]
        if self.normalize:
            variance, mean = _spread(patchify(images, self.stride))
            predictions = predictions * (variance + 1e-6).sqrt() + mean
        return unpatchify(predictions, Grid(height // down, width // right), self.stride)


class Codes(Target):
    """The code of each unit in the vocabulary of a tokenizer, to be predicted by one logit for each (BEiT, ImageGPT).

    The tokenizer is frozen, kept in eval mode, and saved with the pretrainer if it is a module.

    >>> from patchcast.tokenizers.patches import PatchCodebook
    >>> target = Codes(PatchCodebook(torch.tensor([[0.0], [1.0]]), stride=(1, 1), normalize=False))
    >>> target(torch.tensor([[[[0.2, 0.9]]]])).tolist()
    [[[0], [1]]]

    Args:
        tokenizer: anything with `vocabulary` and `encode`; see `patchcast.tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.outputs = tokenizer, tokenizer.vocabulary
        self.is_drawn = isinstance(tokenizer, Draws)
        self.from_image = tokenizer.from_image if isinstance(tokenizer, Draws) else ""
        if isinstance(tokenizer, nn.Module):
            tokenizer.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Codes:
        super().train(mode)
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Int[Tensor, "B N 1"]:
        return self.tokenizer.encode(pixels_of(images))[..., None]

    def to_pixels(
        self, predictions: Float[Tensor, "B N K"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """The most likely codes, drawn.

        Raises:
            ValueError: if the tokenizer does not say how.
        """
        if not isinstance(self.tokenizer, Draws):
            raise ValueError(f"codes of {type(self.tokenizer).__name__} cannot be drawn: it has no `draw` (see Draws)")
        return self.tokenizer.draw(predictions.argmax(dim=-1), images)

    def blind(self, targets: Int[Tensor, "B G P 1"]) -> Float[Tensor, "B G P K"]:
        """The logarithm of how often each code is among them."""
        counts = F.one_hot(targets.flatten(), self.outputs).sum(0)
        return (counts / counts.sum()).log().clamp(min=-100).expand(*targets.shape[:3], -1)


class EMAFeatures(Target):
    """Layer-normed features of a teacher, which is a slowly moving average of the backbone (Assran et al. 2023).

    The teacher sees the whole image, in eval mode. Its momentum rises linearly to 1 over the training. Teacher and
    step are part of the state, so that a training resumed is the same training.

    >>> from patchcast.backbones import wrap
    >>> backbone = wrap("test_vit", img_size=32)
    >>> target = EMAFeatures(backbone, momentum=0.9, steps=2)
    >>> target.update(backbone); target.momentum
    0.95

    Args:
        backbone: copied; the copy takes no gradient.
        momentum: at the first step.
        steps: optimiser steps after which it is 1; None: it stays where it is. It may be set later, when the length of
            the training is known.
    """

    step: Tensor

    has_noise_floor = False

    def __init__(self, backbone: Backbone, *, momentum: float = 0.996, steps: int | None = None) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.start, self.steps, self.outputs = momentum, steps, backbone.width
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._done = 0  # the same, where reading it makes no GPU wait
        self.register_load_state_dict_post_hook(_count_again)

    @property
    def momentum(self) -> float:
        """The teacher's share in its next value."""
        if self.steps is None:
            return self.start
        return self.start + (1 - self.start) * min(1.0, self._done / self.steps)

    def train(self, mode: bool = True) -> EMAFeatures:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> Float[Tensor, "B N D"]:
        features = self.teacher.units(images)
        return F.layer_norm(features.float(), features.shape[-1:])

    @torch.no_grad()
    def update(self, backbone: Backbone) -> None:
        average = get_ema_multi_avg_fn(self.momentum)
        average(list(self.teacher.parameters()), [each.detach() for each in backbone.parameters()], self.step)
        for mine, theirs in zip(self.teacher.buffers(), backbone.buffers(), strict=True):
            mine.copy_(theirs)
        self.step += 1
        self._done += 1


def _count_again(target: EMAFeatures, _: object) -> None:
    target._done = int(target.step)


def _spread(units: Float[Tensor, "B N T"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    return units.var(dim=-1, keepdim=True), units.mean(dim=-1, keepdim=True)


def patchify(images: Float[Tensor, "B C H W"], stride: tuple[int, int]) -> Float[Tensor, "B N T"]:
    """Images to units, row by row; the values of a unit in the order row, column, channel."""
    batch, channels, height, width = images.shape
    (down, right) = stride
    x = images.reshape(batch, channels, height // down, down, width // right, right)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, down * right * channels)


def unpatchify(units: Float[Tensor, "B N T"], grid: Grid, stride: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`.

    >>> import torch
    >>> images = torch.rand(2, 3, 4, 6)
    >>> torch.equal(unpatchify(patchify(images, (2, 2)), Grid(2, 3), (2, 2)), images)
    True
    """
    (down, right) = stride
    x = units.reshape(len(units), grid.rows, grid.cols, down, right, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(len(units), -1, grid.rows * down, grid.cols * right)
