"""`patchcast finetune --task segmentation`: a segmenter from a run or other weights."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from timm.models import group_parameters
from torch import nn

from patchcast import options
from patchcast.classification.mistakes import draw_named
from patchcast.classification.training import WEIGHT_DECAY, Settings, best_of, train_epochs
from patchcast.commands.parts import note_plan
from patchcast.data import Augment, Evaluate
from patchcast.data.masks import IGNORED, MaskedImages
from patchcast.data.names import escape
from patchcast.evaluation.dense import Dense, confusion
from patchcast.evaluation.features import fingerprint
from patchcast.files import read_json, write_figure, write_text
from patchcast.runs.network import Network
from patchcast.segmentation.mask_pictures import overlay
from patchcast.segmentation.masked_data import CROPS, AugmentedMasks, MaskedData, masked_data
from patchcast.segmentation.segmenter import Segmenter, SegmentHead
from patchcast.segmentation.segmenter_card import write_segmenter_card
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter, save_segmenter
from patchcast.training.engine import default_workers
from patchcast.training.lock import locked

BEGUN_MASKS, METRICS_MASKS = "finetune.json", "metrics.json"
SEGMENT_EPOCHS, SEGMENT_BATCH, SEGMENT_LAYER_DECAY = 30, 16, 0.65
SEGMENT_LR, FROZEN_SEGMENT_LR, FEW_MASKS = 1e-3, 3e-3, 20
SHOWN_MASKS = 12
USELESS = ("multi_label", "mixup", "cutmix", "smoothing", "class_weights", "limit_per_class", "image_column",
           "label_column", "max_pixels")  # fmt: skip


def finetune_segmenter(
    given: options.FinetuneClassifier, network: Network, device: str, *, words: Sequence[str]
) -> None:
    """Train the segmenter, or resume it, and write its folder.

    Args:
        words: of the command, for the card.
    Raises:
        ValueError: for anything that the user can put right, in one sentence.
        InterruptedError, KeyboardInterrupt: for SIGTERM and Ctrl-C, after a checkpoint.
    """
    fresh = options.FinetuneClassifier(model="", data="", out=Path())
    if named := [f"--{name}" for name in USELESS if getattr(given, name) != getattr(fresh, name)]:
        raise ValueError(f"--task segmentation does not use {', '.join(named)}; leave them out")
    if given.head == "attentive" or given.augment == "strong":
        raise ValueError("--task segmentation has --head linear or conv, and --augment none or light")
    evaluate = Evaluate(network.size, network.mean, network.std, squash=True)
    data = masked_data(Path(given.data), channels=network.backbone.channels, evaluate=evaluate, seed=given.seed)
    head: SegmentHead = "conv" if given.head == "conv" else "linear"
    model = Segmenter(network.backbone, len(data.names), head=head, seed=given.seed)
    is_frozen = len(data.train) < FEW_MASKS and not given.untrained if given.freeze is None else given.freeze
    if is_frozen:
        model.freeze()
    tuned = FineTunedSegmenter(
        model, data.names, network.backbone.channels, network.size, network.mean, network.std, given.tiles
    )
    settings = Settings(
        epochs=given.epochs or SEGMENT_EPOCHS,
        batch_size=min(given.batch_size or SEGMENT_BATCH, len(data.train)),
        lr=given.lr or (FROZEN_SEGMENT_LR if is_frozen else SEGMENT_LR),
        layer_decay=given.layer_decay or (1.0 if given.untrained else SEGMENT_LAYER_DECAY),
        is_frozen=is_frozen,
        seed=given.seed,
        workers=default_workers("gpu" if device == "cuda" else "cpu") if given.workers is None else given.workers,
    )
    console = Console(highlight=False)
    assert model.layers is not None
    with locked(given.out):
        if not _claim(given, settings, data, network, head):
            console.print(f"{escape(given.out)} is finished: {_said(read_json(given.out / METRICS_MASKS))}")
            return
        scale = None if given.augment == "none" else CROPS
        what = (
            f"a {head} head on {'the frozen backbone' if is_frozen else 'the backbone, all weights trained'}, "
            f"{settings.epochs} epochs in batches of {settings.batch_size} at {settings.lr:g}"
            f"{', tiles' * given.tiles}, augmentation {'none' if scale is None else 'light'}"
        )
        console.print(
            f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test masks of "
            f"{len(data.names)} classes.\n{network.name}: {what}."
        )
        flip = given.flip is not False and given.augment != "none"
        augment = Augment(network.size, scale, flip, network.mean, network.std)
        began = time.process_time()
        rows = train_epochs(
            model,
            AugmentedMasks(data.train, augment, given.seed, tiled=given.tiles),
            groups=segmenter_groups(model, settings),
            loss=lambda logits, masks: F.cross_entropy(logits, masks, ignore_index=IGNORED),
            validate=lambda: judge_segmenter(tuned, data.validation, device)[:2],
            measure="mean_iou",
            train_mode=model.train,
            settings=settings,
            out=given.out,
            device=device,
        )
        seconds = time.process_time() - began
        save_segmenter(tuned, network, given.out, head=head, layers=model.layers)
        model.to(device)
        _, _, dense = judge_segmenter(tuned, data.test, device)
        metrics: dict[str, Any] = {
            "mean_iou": dense.mean_iou._asdict(),
            "pixel_accuracy": dense.pixel_accuracy._asdict(),
            "iou": _of_classes(dense, data.names),
            "confusion": dense.confusions.sum(dim=0).tolist(),
            "test_images": len(data.test),
            "training_images": len(data.train),
            "validation_images": len(data.validation),
            "processor_seconds": round(seconds, 1),
            "chosen": {**best_of(rows, "mean_iou"), "epochs": rows},
            "data": data.phrase,
            "how": what,
            "command": shlex.join(words),
        }
        _draw_worst(tuned, data.test, dense, given.out / "worst-mistakes.png", device)
        write_segmenter_card(
            given.out, network.name, given.data, data.names, metrics, words,
            channels=tuned.channels, size=tuned.size, tiled=tuned.tiled,
        )  # fmt: skip
        write_text(given.out / METRICS_MASKS, json.dumps(metrics, indent=2) + "\n")
        shutil.rmtree(given.out / "checkpoints", ignore_errors=True)
    console.print(_said(metrics))
    console.print(f"Written to {escape(given.out)}. {next_commands(given.out, '--out masks')}")


def next_commands(out: Path, options: str) -> str:
    """What follows after fine-tuning, as markup."""
    folder = shlex.quote(str(out))
    predict, page = f"patchcast predict {folder} IMAGES {options}", f"patchcast report {folder}"
    return f"Next: [bold]{escape(predict)}[/], or [bold]{escape(page)}[/] for one page about it"


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


def segmenter_groups(model: Segmenter, settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups with `lr_scale`: 1 for the head, decaying from each of the network's layers to the one before.

    Raises:
        ValueError: if timm does not tell the model's blocks apart.
    """
    numbers: dict[nn.Parameter, int] = {}
    if settings.layer_decay != 1.0 and not settings.is_frozen:
        matcher = getattr(model.model, "group_matcher", None)
        if matcher is None:
            raise ValueError(
                f"timm does not tell the blocks of {type(model.model).__name__} apart: use --layer_decay 1"
            )
        by_name = group_parameters(model.model, matcher(coarse=False), reverse=True)
        numbers = {parameter: by_name[name] for name, parameter in model.model.named_parameters()}
    last = max(numbers.values(), default=0)
    undecayed = set(getattr(model.model, "no_weight_decay", set)())
    spared = {parameter for name, parameter in model.model.named_parameters() if name in undecayed}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = settings.layer_decay ** (last + 1 - numbers[parameter]) if parameter in numbers else 1.0
            decay = 0.0 if parameter.ndim < 2 or parameter in spared else WEIGHT_DECAY
            group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def _claim(
    given: options.FinetuneClassifier, settings: Settings, data: MaskedData, network: Network, head: str
) -> bool:
    """Note what is trained; False if it is finished.

    Raises:
        ValueError: if the folder holds another model.
    """
    plan = {
        "task": "segmentation",
        "head": head,
        "tiles": given.tiles,
        "augment": given.augment or "light",
        "flip": given.flip is not False,
        **{name: value for name, value in asdict(settings).items() if name != "workers"},
        "weights": fingerprint(network.backbone),
        "training images": fingerprint([str(file) for file, _ in data.train.files]),
        "classes": data.names,
    }
    now = json.loads(json.dumps({"model": network.name, "data": given.data, "plan": plan}))
    return note_plan(now, given.out / BEGUN_MASKS, given.out / METRICS_MASKS, kind="model")


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


def _said(metrics: dict[str, Any]) -> str:
    value, low, high = (100 * metrics["mean_iou"][name] for name in ("value", "low", "high"))
    return (
        f"Mean IoU {value:.1f} % (95 % interval {low:.1f} to {high:.1f}) on {metrics['test_images']:,} test images; "
        f"{100 * metrics['pixel_accuracy']['value']:.1f} % of pixels right."
    )
