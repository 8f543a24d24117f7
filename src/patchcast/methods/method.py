"""`Method`: the function that builds a method, and its paper's training settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from patchcast.pretrainer import Pretrainer
from patchcast.recipe import OptimizerName


@dataclass(frozen=True)
class Method:
    """A method and the published settings of its training.

    Attributes:
        build: the method's function, `(backbone, **options) -> Pretrainer`. If it predicts codes of patches, its second
            argument is the tokenizer.
        lr_per_256: the paper's learning rate for 256 images per step; its own batches are of `paper_batch` images, and
            it scales linearly with the batch size (Goyal et al. 2017).
        paper_batch: images per step in the paper.
        paper_width: of the narrowest model that the paper trains at this rate.
        highest_lr: the highest rate that was stable here (`benchmarks/NOTES.md`).
        sizes: the options of `build` that set the size of the predictor, from the width and the number of blocks of the
            model, in the paper's proportions; None if the predictor has no size.
        few: options of `build` that were better than the paper's here, for few images and in short runs.
        few_optimizer: the optimizer that learned more here, likewise.
        crop_scale: smallest and largest share of the image area that a random crop covers.
        clip: maximum norm of the gradient; None for no clipping.
        flip: whether half of the images are mirrored.
        betas: of AdamW.
        weight_decay: of weight matrices.
        takes_steps: whether `build` takes the number of optimizer steps, for its own schedule.
        codes: what it predicts codes of: "patches" with any backbone, or "colors" of pixels with an ImageGPT network.
        causal: whether that network is causal.
        teacher: whether `build` takes a teacher, as the argument of this name: a frozen network whose features are
            predicted, which the command line names with `--teacher`.
        named: for options that take an object, the objects that the command line offers by name.
    """

    build: Callable[..., Pretrainer]
    lr_per_256: float
    crop_scale: tuple[float, float]
    clip: float | None = None
    flip: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    takes_steps: bool = False
    codes: Literal["patches", "colors"] | None = None
    causal: bool = False
    teacher: Literal["no", "optional", "required"] = "no"
    paper_batch: int = 4096
    paper_width: int = 768
    highest_lr: float = 3e-3
    sizes: Callable[[int, int], dict[str, Any]] | None = None
    few: Mapping[str, Any] = field(default_factory=dict)
    few_optimizer: OptimizerName = "adamw"
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
