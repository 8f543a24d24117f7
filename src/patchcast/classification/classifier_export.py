"""A fine-tuned classifier for other libraries; each file is kept only if it gives the classifier's own predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from patchcast.classification.classifier_folder import (
    FineTuned,
    open_classifier,
)
from patchcast.classification.serving import SERVING, write_serving_card
from patchcast.classification.transformers_folder import logits_from_transformers, write_transformers
from patchcast.files import write_text
from patchcast.folder_files import CLASSES
from patchcast.interop.export_formats import images_of_noise
from patchcast.interop.graph import Difference, Graph, write_onnx, write_torch
from patchcast.modes import evaluating

PROBABILITY_TOLERANCE = 1e-4
"""Of the probabilities, between 0 and 1."""
OUTPUTS = ("logits", "probabilities")


class WithProbabilities(nn.Module):
    """From normalized images to logits and probabilities.

    Args:
        model: from images to logits.
        is_multi_label: the probability of a class does not depend on the others.
    """

    def __init__(self, model: nn.Module, *, is_multi_label: bool = False) -> None:
        super().__init__()
        self.model, self.is_multi_label = model, is_multi_label

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits, logits.sigmoid() if self.is_multi_label else logits.softmax(dim=1)


def export_classifier(folder: Path, out: Path, *, to: str) -> str:
    """Write a classifier to an empty folder; returns a sentence about the comparison.

    Args:
        to: one of `CLASSIFIER_FORMATS`.
    Raises:
        ValueError: if this format cannot hold the model, or the file predicts otherwise.
    """
    tuned = open_classifier(folder)
    evaluate = tuned.evaluate
    images = images_of_noise(tuned.channels, evaluate.size, tuned.mean, tuned.std)
    difference = CLASSIFIER_FORMATS[to](tuned, folder, out, images)
    if to in ("onnx", "torch"):
        about = {
            "multi_label": tuned.is_multi_label,
            "input_size": [tuned.channels, *evaluate.size],
            "mean": list(tuned.mean),
            "std": list(tuned.std),
        }
        crop = "squash" if evaluate.squash else "center"
        write_text(out / "preprocessing.json", json.dumps({**about, "crop_mode": crop}, indent=2) + "\n")
        write_text(out / CLASSES, json.dumps(tuned.names, indent=2) + "\n")
    if to in SERVING and (folder / "README.md").exists():
        write_serving_card(folder / "README.md", out, to=to, channels=tuned.channels)
    return f"Compared with the classifier on 8 images: the largest difference is {difference}."


def _for_timm(tuned: FineTuned, folder: Path, out: Path, images: Sequence[Tensor]) -> Difference:
    for name in ("model.safetensors", "config.json", CLASSES, "README.md"):
        if (folder / name).exists():
            shutil.copy(folder / name, out / name)
    return compare_predictions(tuned, open_classifier(out).model, images)


def _for_transformers(tuned: FineTuned, folder: Path, out: Path, images: Sequence[Tensor]) -> Difference:
    write_transformers(tuned, out)
    return compare_predictions(tuned, logits_from_transformers(out), images)


def _for_torch(tuned: FineTuned, folder: Path, out: Path, images: Sequence[Tensor]) -> Difference:
    return write_torch(_graph(tuned), out / "model.pt2", images)


def _for_onnx(tuned: FineTuned, folder: Path, out: Path, images: Sequence[Tensor]) -> Difference:
    return write_onnx(_graph(tuned), out / "model.onnx", images)


def _graph(tuned: FineTuned) -> Graph:
    module = WithProbabilities(tuned.model, is_multi_label=tuned.is_multi_label)
    return Graph(module, type(tuned.model).__name__, OUTPUTS, tuned.channels, tuned.evaluate.size, module)


def compare_predictions(tuned: FineTuned, other: nn.Module, images: Sequence[Tensor]) -> Difference:
    """The largest difference between the probabilities of a classifier and another model's.

    Raises:
        ValueError: if it is more than rounding.
    """
    greatest = largest = 0.0
    with evaluating(tuned.model), evaluating(other):
        for batch in images:
            expected, found = (tuned.probabilities(model(batch)) for model in (tuned.model, other))
            if expected.shape != found.shape:
                raise ValueError(f"the file has {found.shape[1]} classes, and the classifier {expected.shape[1]}")
            greatest = max(greatest, float((expected - found).abs().max()))
            largest = max(largest, float(expected.max()))
    difference = Difference(greatest, largest)
    if not greatest <= PROBABILITY_TOLERANCE:  # also if it is NaN
        raise ValueError(f"the file does not predict what the classifier predicts: it differs by {difference}")
    return difference


Write = Callable[[FineTuned, Path, Path, Sequence[Tensor]], Difference]
CLASSIFIER_FORMATS: dict[str, Write] = {
    "timm": _for_timm,
    "transformers": _for_transformers,
    "onnx": _for_onnx,
    "torch": _for_torch,
}
