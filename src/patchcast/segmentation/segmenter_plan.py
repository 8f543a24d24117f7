"""How a segmenter is trained: what the options leave open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcast import options
from patchcast.classification.training import Settings
from patchcast.data import Augment
from patchcast.evaluation.features import fingerprint
from patchcast.runs.network import Network
from patchcast.segmentation.masked_data import CROPS, MaskedData
from patchcast.segmentation.segmenter import SegmentHead
from patchcast.training.engine import default_workers

SEGMENT_EPOCHS, SEGMENT_BATCH, SEGMENT_LAYER_DECAY = 30, 16, 0.65
SEGMENT_LR, FROZEN_SEGMENT_LR, FEW_MASKS = 1e-3, 3e-3, 20
USELESS = ("multi_label", "mixup", "cutmix", "smoothing", "class_weights", "limit_per_class", "image_column",
           "label_column", "max_pixels")  # fmt: skip


@dataclass(frozen=True)
class SegmenterPlan:
    """Every choice, made.

    Attributes:
        flip: as given; without augmentation nothing is flipped.
        tiled: large images are cut into tiles of the network's size.
    """

    head: SegmentHead
    is_frozen: bool
    augment: str
    flip: bool
    tiled: bool
    settings: Settings

    def augmentation(self, network: Network) -> Augment:
        """Crops and flips of the training images, as chosen."""
        scale, flip = (None, False) if self.augment == "none" else (CROPS, self.flip)
        return Augment(network.size, scale, flip, network.mean, network.std)

    def depends_on(self, data: MaskedData, network: Network) -> dict[str, Any]:
        """All that the weights depend on, to check that a resumed command trains the same."""
        return {
            "task": "segmentation",
            "head": self.head,
            "tiles": self.tiled,
            "augment": self.augment,
            "flip": self.flip,
            **self.settings.plain(),
            "weights": fingerprint(network.backbone),
            "training images": fingerprint([str(file) for file, _ in data.train.files]),
            "classes": data.names,
        }

    def __str__(self) -> str:
        trained = "the frozen backbone" if self.is_frozen else "the backbone, all weights trained"
        return (
            f"a {self.head} head on {trained}, {self.settings.epochs} epochs in batches of "
            f"{self.settings.batch_size} at {self.settings.lr:g}{', tiles' * self.tiled}, augmentation {self.augment}"
            f"{f', in {self.settings.precision}' if self.settings.precision else ''}"
        )


def check_for_segmentation(given: options.FinetuneClassifier) -> None:
    """Raises:
    ValueError: if an option is for classifiers only.
    """
    fresh = options.FinetuneClassifier(model="", data="", out=Path())
    if named := [f"--{name}" for name in USELESS if getattr(given, name) != getattr(fresh, name)]:
        raise ValueError(f"--task segmentation does not use {', '.join(named)}; leave them out")
    if given.head == "attentive" or given.augment == "strong":
        raise ValueError("--task segmentation has --head linear or conv, and --augment none or light")


def segmenter_plan_of(given: options.FinetuneClassifier, data: MaskedData, device: str) -> SegmenterPlan:
    """The options, and what follows for those that were not given."""
    is_frozen = len(data.train) < FEW_MASKS and not given.untrained if given.freeze is None else given.freeze
    settings = Settings(
        epochs=given.epochs or SEGMENT_EPOCHS,
        batch_size=min(given.batch_size or SEGMENT_BATCH, len(data.train)),
        lr=given.lr or (FROZEN_SEGMENT_LR if is_frozen else SEGMENT_LR),
        layer_decay=given.layer_decay or (1.0 if given.untrained else SEGMENT_LAYER_DECAY),
        is_frozen=is_frozen,
        seed=given.seed,
        workers=default_workers("gpu" if device == "cuda" else "cpu") if given.workers is None else given.workers,
        precision=given.precision,
    )
    head: SegmentHead = "conv" if given.head == "conv" else "linear"
    return SegmenterPlan(head, is_frozen, given.augment or "light", given.flip is not False, given.tiles, settings)
