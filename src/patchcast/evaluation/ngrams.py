"""Baselines for a loss on codes, from counting. A network that is not below them has learned nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Floors:
    """Losses on test images, in nats per code.

    Attributes:
        uniform: the logarithm of the vocabulary.
        unigram: predicted from code frequencies in the training images.
        bigram: predicted from the frequencies of pairs of consecutive codes, row by row.
    """

    uniform: float
    unigram: float
    bigram: float

    def __str__(self) -> str:
        return f"uniform {self.uniform:.3f}, unigram {self.unigram:.3f}, bigram {self.bigram:.3f} nats per code"


def floors(train: Int[Tensor, "M N"], test: Int[Tensor, "B N"], vocabulary: int) -> Floors:
    """Count codes and pairs of codes in the training images, and evaluate on the test images.

    Pair counts are smoothed with single-code counts. The amount of smoothing is the best of five on the test images, so
    the floor is too low rather than too high.

    >>> coin = torch.randint(2, (500, 16), generator=torch.Generator().manual_seed(0))
    >>> print(floors(coin[:400].cumsum(1) % 2, coin[400:].cumsum(1) % 2, 2))
    uniform 0.693, unigram 0.693, bigram 0.693 nats per code
    >>> print(floors(torch.arange(12).view(2, 6) % 3, torch.arange(6).view(1, 6) % 3, 3))
    uniform 1.099, unigram 1.099, bigram 0.199 nats per code
    """
    single = torch.bincount(train.flatten(), minlength=vocabulary).double() + 1
    single = single / single.sum()
    pairs = torch.bincount((train[:, :-1] * vocabulary + train[:, 1:]).flatten(), minlength=vocabulary**2)
    pairs = pairs.view(vocabulary, vocabulary).double()
    before, after = test[:, :-1].flatten(), test[:, 1:].flatten()
    losses = []
    for strength in (0.1, 1.0, 10.0, 100.0, 1000.0):
        chance = (pairs[before, after] + strength * single[after]) / (pairs.sum(dim=1)[before] + strength)
        losses.append(-(chance.log().sum() + single[test[:, 0]].log().sum()) / test.numel())
    return Floors(math.log(vocabulary), -float(single[test.flatten()].log().mean()), float(min(losses)))


def bits_per_pixel(nats_per_code: float, *, pixels_per_code: int = 1) -> float:
    """A loss in nats per code as bits per pixel of the image that the codes stand for.

    With a palette this is the quantized image: not comparable with bits per dimension of models of 8-bit pixels.

    >>> round(bits_per_pixel(2.0895), 3)
    3.015
    """
    return nats_per_code / math.log(2) / pixels_per_code
