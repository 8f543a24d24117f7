"""What `patchcast finetune` leaves: a model and its results."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchcast.files import read_json
from patchcast.folder_files import BEGUN, CLASSES, CONFIG, RESULTS, SEGMENTER

MAIN = {"accuracy": "accuracy", "mean_average_precision": "mean average precision", "mean_iou": "mean IoU"}
"""The measures by which models are chosen and judged: their names in metrics.json, and in words."""
CLASSES_SHOWN = 60
"""Maximum number of classes with a row of their own."""


@dataclass(frozen=True)
class ModelNumbers:
    """A fine-tuned model and its results.

    Attributes:
        start: what training started from, in words.
        data: the words of its labeled images.
        metrics: the contents of metrics.json.
    """

    folder: Path
    start: str
    data: str
    metrics: Mapping[str, Any]

    @property
    def measure(self) -> str:
        """The name of the main measure in metrics.json."""
        return next(name for name in MAIN if name in self.metrics)

    @property
    def names(self) -> list[str]:
        """Of the classes, by number."""
        file = SEGMENTER if self.measure == "mean_iou" else CLASSES
        listed = read_json(self.folder / file)
        return list(listed) if isinstance(listed, list) else list(listed.get("names", listed.get("classes")))

    @property
    def confusion(self) -> np.ndarray | None:
        """Counts by true and predicted class; None for folders of earlier versions, and for many classes."""
        counts = self.metrics.get("confusion")
        return None if counts is None else np.array(counts)

    @property
    def by_class(self) -> dict[str, float]:
        """The measure of each class: recall, average precision or IoU."""
        names = {"accuracy": "recall", "mean_average_precision": "average_precision", "mean_iou": "iou"}
        return dict(self.metrics.get(names[self.measure], {}))


def is_model(folder: Path) -> bool:
    """Whether `patchcast finetune` made this folder."""
    return (folder / BEGUN).exists() and not (folder / CONFIG).exists()


def read_model(folder: Path) -> ModelNumbers:
    """What is known about a fine-tuned model.

    Raises:
        ValueError: if its training has not finished, or a file is damaged.
    """
    if not (folder / RESULTS).exists():
        raise ValueError(f"fine-tuning has not finished in {folder}; the same command resumes it")
    begun, metrics = read_json(folder / BEGUN), read_json(folder / RESULTS)
    untrained = "--untrained" in shlex.split(metrics.get("command", ""))
    return ModelNumbers(folder, begun["model"] + ", untrained" * untrained, begun["data"], metrics)
