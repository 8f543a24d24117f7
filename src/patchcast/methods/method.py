"""What a method's paper says of its training, beside the function that builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from patchcast.pretrainer import Pretrainer


@dataclass(frozen=True)
class Method:
    """A method and the published settings of its training.

    Attributes:
        build: the method's function, `(backbone, **options) -> Pretrainer`; one that predicts codes of patches takes
            the tokenizer after the backbone.
        lr_per_256: learning rate for 256 images a step; it grows in proportion to the batch (Goyal et al. 2017).
        crop_scale: share of the image's area that random crops keep.
        clip: largest norm of the gradient, None for no clipping.
        flip: whether half of the images are mirrored.
        betas: of AdamW.
        weight_decay: of matrices.
        takes_steps: whether `build` takes the number of optimiser steps, for a schedule of its own.
        codes: what it predicts codes of: "patches" of any backbone, or the "colours" of pixels, on an ImageGPT network.
        causal: whether that network sees of each image only what came before.
        named: for options that take a part, the parts that the command line knows by name.
    """

    build: Callable[..., Pretrainer]
    lr_per_256: float
    crop_scale: tuple[float, float]
    clip: float | None = None
    flip: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    takes_steps: bool = False
    codes: Literal["patches", "colours"] | None = None
    causal: bool = False
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
