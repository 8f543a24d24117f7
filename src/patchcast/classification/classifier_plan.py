"""How a classifier is trained: what the options leave open depends on the number of labels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from patchcast import options
from patchcast.classification.augmentation import Strength
from patchcast.classification.classifier_data import ClassifierData
from patchcast.classification.training import Settings
from patchcast.data import Images
from patchcast.data.digits import PACKAGED
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.labeled import labels_of, paths_of
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Range
from patchcast.runs.network import Network
from patchcast.training.engine import default_workers

FEW_LABELS = 20
"""Training images per class below which the backbone is frozen by default."""
EPOCHS, BATCH, LAYER_DECAY = 30, 64, 0.65
FEWEST_FINETUNE_STEPS = 200
"""With few images 30 epochs are few steps: on 5 per class of EuroSAT 30 steps reached 62.7 %, and 100 steps 70.6 %."""
LR, FROZEN_LR = 1e-3, 3e-3
SMOOTHING = 0.1
FINETUNE_RANGES: dict[str, Range] = {
    "epochs": AT_LEAST_1, "lr": POSITIVE, "batch_size": AT_LEAST_1, "mixup": NOT_NEGATIVE, "cutmix": NOT_NEGATIVE,
    "layer_decay": POSITIVE_SHARE, "smoothing": SHARE, "limit_per_class": AT_LEAST_1,
    "image_size": AT_LEAST_1, "max_pixels": AT_LEAST_1, "workers": NOT_NEGATIVE, "seed": NOT_NEGATIVE,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingPlan:
    """Every choice, made: what the options leave open depends on the number of labels."""

    is_frozen: bool
    head: Any
    augment: Strength
    flip: bool
    class_weights: str
    settings: Settings
    is_multi_label: bool = False

    @property
    def is_fitted(self) -> bool:
        """Whether the head is fitted to its optimum, without epochs."""
        return self.is_frozen and self.head == "linear" and self.augment == "none" and not self.is_multi_label

    def __str__(self) -> str:
        balance = ", classes weighted alike" if self.class_weights == "balanced" else ""
        if self.is_fitted:
            return f"a linear head on the frozen backbone, fitted by logistic regression{balance}"
        what = f"{self.head} head on the frozen backbone" if self.is_frozen else f"all weights, {self.head} head"
        settings = self.settings
        mixing = "".join(
            f", {name} {value:g}" for name, value in (("mixup", settings.mixup), ("cutmix", settings.cutmix)) if value
        )
        decay = "" if self.is_frozen else f", layer decay {settings.layer_decay:g}"
        return (
            f"{what}, {settings.epochs} epochs in batches of {settings.batch_size} at {settings.lr:g}{decay}, "
            f"augmentation {self.augment}{mixing}, smoothing {settings.smoothing:g}{balance}"
            f"{f', in {settings.precision}' if settings.precision else ''}"
        )

    def depends_on(self, data: ClassifierData, network: Network) -> dict[str, Any]:
        """All that the weights depend on, to check that a resumed command trains the same."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "settings"},
            **self.settings.plain(),
            "weights": fingerprint(network.backbone),
            "training images": fingerprint([f"{path} {label}" for path, label in _listed(data.train)]),
            "validation images": fingerprint([f"{path} {label}" for path, label in _listed(data.validation)]),
            "classes": data.names,
        }


def plan_of(given: options.FinetuneClassifier, data: ClassifierData, device: str) -> TrainingPlan:
    """The options, and what follows for those that were not given.

    Raises:
        ValueError: if an option has no effect with the others.
    """
    classes = len(data.names) if given.multi_label else len(np.unique(labels_of(data.train)))
    is_frozen = given.freeze
    if is_frozen is None:
        asks_for_training = given.untrained or given.layer_decay is not None
        is_frozen = len(data.train) < FEW_LABELS * classes and not asks_for_training
    augment: Strength = given.augment or ("none" if is_frozen else "light")
    flip = given.flip if given.flip is not None else given.data not in PACKAGED
    batch_size = min(given.batch_size or BATCH, len(data.train))
    if (given.mixup or given.cutmix) and batch_size < 2:
        raise ValueError(f"--mixup and --cutmix mix pairs of images; got batches of {batch_size}")
    per_epoch = max(1, len(data.train) // batch_size)
    settings = Settings(
        epochs=given.epochs or max(EPOCHS, math.ceil(FEWEST_FINETUNE_STEPS / per_epoch)),
        batch_size=batch_size,
        lr=given.lr or (FROZEN_LR if is_frozen else LR),
        layer_decay=given.layer_decay or (1.0 if given.untrained else LAYER_DECAY),
        mixup=given.mixup,
        cutmix=given.cutmix,
        smoothing=given.smoothing if given.smoothing is not None else 0.0 if is_frozen else SMOOTHING,
        is_frozen=is_frozen,
        seed=given.seed,
        workers=default_workers("gpu" if device == "cuda" else "cpu") if given.workers is None else given.workers,
        precision=given.precision,
    )
    plan = TrainingPlan(is_frozen, given.head, augment, flip, given.class_weights, settings, given.multi_label)
    useless = {
        "epochs": given.epochs, "lr": given.lr, "batch_size": given.batch_size, "mixup": given.mixup,
        "cutmix": given.cutmix, "smoothing": given.smoothing, "precision": given.precision,
    }  # fmt: skip
    if is_frozen and given.layer_decay is not None:
        raise ValueError("--layer_decay has no use with --freeze: the blocks are not trained")
    if plan.is_fitted and (named := [f"--{name}" for name, value in useless.items() if value]):
        few = "" if given.freeze else f" (frozen, because there are fewer than {FEW_LABELS} training images per class)"
        raise ValueError(
            f"a linear head on a frozen backbone is fitted without {', '.join(named)}{few}; leave them out, or give "
            "--no_freeze, --head attentive or --augment light"
        )
    return plan


def _listed(images: Images) -> list[tuple[str, int]]:
    return list(zip(paths_of(images), labels_of(images).tolist(), strict=True))
