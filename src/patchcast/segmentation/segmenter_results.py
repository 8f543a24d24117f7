"""The numbers of a segmenter on images with masks, and pictures of its worst masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchcast.classification.mistakes import draw_named
from patchcast.data.masks import IGNORED, MaskedImages
from patchcast.evaluation.dense import Dense, confusion
from patchcast.files import write_figure
from patchcast.segmentation.mask_pictures import overlay
from patchcast.segmentation.masked_data import MaskedData
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter

SHOWN_MASKS = 12


def measure_segmenter(tuned: FineTunedSegmenter, data: MaskedData, out: Path, device: str) -> dict[str, Any]:
    """The numbers on the test images, looked at once, and a picture of the worst."""
    _, _, dense = judge_segmenter(tuned, data.test, device)
    _draw_worst(tuned, data.test, dense, out / "worst-mistakes.png", device)
    return {
        "mean_iou": dense.mean_iou._asdict(),
        "pixel_accuracy": dense.pixel_accuracy._asdict(),
        "iou": _of_classes(dense, data.names),
        "confusion": dense.confusions.sum(dim=0).tolist(),
        "test_images": len(data.test),
        "training_images": len(data.train),
        "validation_images": len(data.validation),
    }


def judge_segmenter(tuned: FineTunedSegmenter, images: MaskedImages, device: str) -> tuple[float, float, Dense]:
    """Mean loss per pixel, mean IoU, and the confusions, on the pixels of the images as they are in their files."""
    matrices, losses, counted, classes = [], 0.0, 0, len(tuned.names)
    for place in range(len(images)):
        image, mask = images.read(place)
        shares = tuned.probabilities(image, device)
        known = mask != IGNORED
        losses += float(
            F.nll_loss(shares.clamp(min=1e-8).log()[None], mask[None], ignore_index=IGNORED, reduction="sum")
        )
        counted += int(known.sum())
        matrix = confusion(mask[None], shares.argmax(dim=0)[None])
        matrices.append(F.pad(matrix, (0, classes - matrix.shape[-1]) * 2))
    dense = Dense(torch.cat(matrices))
    return losses / max(1, counted), dense.mean_iou.value, dense


def _of_classes(dense: Dense, names: list[str]) -> dict[str, float]:
    counts = dense.confusions.sum(dim=0).double()
    right = counts.diagonal()
    union = counts.sum(dim=0) + counts.sum(dim=1) - right
    return {name: float(right[place] / union[place]) for place, name in enumerate(names) if counts[place].sum() > 0}


def _draw_worst(tuned: FineTunedSegmenter, images: MaskedImages, dense: Dense, file: Path, device: str) -> None:
    """The test images with the smallest share of right pixels: what was predicted next to the mask."""
    right = [
        float(Dense(one[None]).confusions.diagonal(dim1=1, dim2=2).sum() / one.sum().clamp(min=1))
        for one in dense.confusions
    ]
    worst = np.argsort(right)[:SHOWN_MASKS].tolist()
    pictures, captions = [], []
    for place in worst:
        image, mask = images.read(place)
        guess = tuned.probabilities(image, device).argmax(dim=0)
        both = torch.cat([overlay(image, guess), overlay(image, mask)], dim=2)
        pictures.append(both)
        captions.append(f"{images.files[place][0].name}\n{right[place]:.0%} right; predicted | mask")
    write_figure(draw_named(pictures, captions, columns=4), file)


def segmenter_summary(metrics: Mapping[str, Any]) -> str:
    """The main numbers in a sentence."""
    value, low, high = (100 * metrics["mean_iou"][name] for name in ("value", "low", "high"))
    return (
        f"Mean IoU {value:.1f} % (95 % interval {low:.1f} to {high:.1f}) on {metrics['test_images']:,} test images; "
        f"{100 * metrics['pixel_accuracy']['value']:.1f} % of pixels right."
    )
