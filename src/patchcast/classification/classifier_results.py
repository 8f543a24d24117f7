"""The numbers of a classifier on its test images, which are looked at once, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from patchcast.classification.classifier_data import ClassifierData
from patchcast.classification.classifier_plan import BATCH
from patchcast.classification.labeling import LabelSets, average_precisions
from patchcast.classification.mistakes import draw_confusion, draw_worst_mistakes, draw_worst_sets
from patchcast.classification.training import logits_of
from patchcast.data import EvalLoader, EvalSet
from patchcast.evaluation.intervals import Interval, accuracy_interval
from patchcast.files import write_figure
from patchcast.runs.network import Network

BOOTSTRAPS = 200
MOST_CONFUSED = 100
"""Classes up to which metrics.json holds the confusion matrix."""


def measure_classifier(
    model: nn.Module, network: Network, data: ClassifierData, out: Path, device: str
) -> dict[str, Any]:
    """The numbers on the test images, looked at once, and pictures of what is wrong."""
    logits, labels = logits_of(model, EvalLoader(EvalSet(data.test, network.evaluate), BATCH), device)
    if isinstance(data.labeling, LabelSets):
        return _measure_sets(logits, labels, data, data.labeling, out)
    guesses = logits.argmax(dim=1)
    correct = guesses == labels
    classes = len(data.names)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels.numpy(), guesses.numpy()), 1)
    write_figure(draw_confusion(counts, data.names), out / "confusion.png")
    draw_worst_mistakes(logits, labels, data, out / "worst-mistakes.png")
    present = counts.sum(axis=1) > 0
    recall = counts.diagonal()[present] / counts.sum(axis=1)[present]
    interval = accuracy_interval(correct)
    return {
        "accuracy": interval._asdict(),
        "balanced_accuracy": float(recall.mean()),
        "largest_class_share": float(counts.sum(axis=1).max() / counts.sum()),
        "recall": {name: float(value) for name, value in zip(np.array(data.names)[present], recall, strict=True)},
        **({"confusion": counts.tolist()} if classes <= MOST_CONFUSED else {}),
        **_counts(data, len(labels)),
    }


def _measure_sets(
    logits: Tensor, labels: Tensor, data: ClassifierData, labeling: LabelSets, out: Path
) -> dict[str, Any]:
    """The same, where an image may have several labels: the classes with a probability of at least one half."""
    targets, guesses = labeling.targets(labels).bool(), logits >= 0
    precision = average_precisions(logits, targets.float())
    hits = (targets & guesses).sum(dim=0).double()
    f1 = (2 * hits / (targets.sum(dim=0) + guesses.sum(dim=0)).clamp(min=1)).numpy()
    draw_worst_sets(logits, targets, data, out / "worst-mistakes.png")
    return {
        "mean_average_precision": bootstrap_mean_precision(logits, targets)._asdict(),
        "exactly_right": accuracy_interval((targets == guesses).all(dim=1))._asdict(),
        "average_precision": {
            name: float(value) for name, value in zip(data.names, precision, strict=True) if not np.isnan(value)
        },
        "f1": dict(zip(data.names, map(float, f1), strict=True)),
        "images_with": dict(zip(data.names, targets.sum(dim=0).tolist(), strict=True)),
        **_counts(data, len(labels)),
    }


def bootstrap_mean_precision(logits: Tensor, targets: Tensor) -> Interval:
    """The mean average precision with its 95 % interval over the test images (percentile bootstrap)."""
    chance = np.random.default_rng(0)
    rows = [chance.integers(0, len(logits), len(logits)) for _ in range(BOOTSTRAPS)]
    drawn = [float(np.nanmean(average_precisions(logits[row], targets[row].float()))) for row in rows]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.nanmean(average_precisions(logits, targets.float()))), float(low), float(high))


def _counts(data: ClassifierData, judged: int) -> dict[str, Any]:
    named = [
        f"{bad.path}: {bad.reason}" for part in (data.train, data.validation, data.test) for bad in part.unreadable
    ]
    return {
        "test_images": judged,
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "unreadable_images": sorted(set(named)),
    }


def classifier_summary(metrics: Mapping[str, Any]) -> str:
    """The main numbers in a sentence."""
    if "mean_average_precision" in metrics:
        value, low, high = (100 * metrics["mean_average_precision"][name] for name in ("value", "low", "high"))
        return (
            f"Mean average precision {value:.1f} % (95 % interval {low:.1f} to {high:.1f}) on "
            f"{metrics['test_images']:,} test images; all labels of an image right: "
            f"{100 * metrics['exactly_right']['value']:.1f} %."
        )
    value, low, high = (100 * metrics["accuracy"][name] for name in ("value", "low", "high"))
    return (
        f"{value:.1f} % of {metrics['test_images']:,} test images right (95 % interval {low:.1f} to {high:.1f}), "
        f"{100 * metrics['balanced_accuracy']:.1f} % as a mean over classes; the largest class is "
        f"{100 * metrics['largest_class_share']:.1f} %."
    )
