"""`patchcast finetune`: a classifier from a run or a timm model, with checkpoints, numbers, pictures and a card."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from patchcast import options
from patchcast.arguments import words_of
from patchcast.classification.augmentation import Strength, classifier_augmentation
from patchcast.classification.classifier_card import write_classifier_card
from patchcast.classification.classifier_data import ClassifierData, classifier_data
from patchcast.classification.classifier_folder import save_classifier
from patchcast.classification.frozen import fit_linear_head, head_inputs
from patchcast.classification.labeling import LabelSets, average_precisions
from patchcast.classification.mistakes import draw_confusion, draw_named
from patchcast.classification.model import classifier, freeze
from patchcast.classification.training import Settings, best_of, logits_of, train_classifier
from patchcast.commands.finetune_masks import finetune_segmenter, next_commands
from patchcast.commands.parts import note_plan
from patchcast.data import EvalLoader, EvalSet, Images, open_source
from patchcast.data.digits import PACKAGED
from patchcast.data.names import escape
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.intervals import Interval, accuracy_interval
from patchcast.evaluation.labeled import labels_of, paths_of
from patchcast.files import read_json, write_figure, write_text
from patchcast.heap import keep_freed_memory
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Range, check_ranges
from patchcast.runs.network import Network, is_run, open_network, torch_device
from patchcast.training.engine import default_workers
from patchcast.training.lock import locked

BEGUN, METRICS = "finetune.json", "metrics.json"
FEW_LABELS = 20
"""Training images per class below which the backbone is frozen by default."""
EPOCHS, BATCH, LAYER_DECAY = 30, 64, 0.65
FEWEST_FINETUNE_STEPS = 200
"""With few images 30 epochs are few steps: on 5 per class of EuroSAT 30 steps reached 62.7 %, and 100 steps 70.6 %."""
LR, FROZEN_LR = 1e-3, 3e-3
SMOOTHING = 0.1
WORST = 24
BOOTSTRAPS = 200
MOST_CONFUSED = 100
"""Classes up to which metrics.json holds the confusion matrix."""
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
        )


def finetune_classifier(given: options.FinetuneClassifier) -> None:
    """Train the classifier, or go on with it, and write its folder.

    Raises:
        ValueError: for anything that the user can put right, in one sentence.
        InterruptedError, KeyboardInterrupt: for SIGTERM and Ctrl-C, after a checkpoint.
    """
    check_ranges({name: getattr(given, name) for name in FINETUNE_RANGES}, FINETUNE_RANGES, prefix="--")
    if given.multi_label and (given.mixup or given.cutmix or given.limit_per_class):
        raise ValueError("--mixup, --cutmix and --limit_per_class need one label per image; leave out --multi_label")
    if given.out.is_file():
        raise ValueError(f"{given.out} is a file; --out is a folder")
    if given.out.is_dir() and any(given.out.iterdir()) and not (given.out / BEGUN).exists():
        raise ValueError(f"{given.out} is not empty and holds no classifier of this command; choose another --out")
    device = torch_device(given.device)
    if device == "cpu":
        keep_freed_memory()
    network = _network(given)
    if given.task == "segmentation":
        finetune_segmenter(given, network, device, words=_command(given))
        return
    if given.head == "conv" or given.tiles:
        raise ValueError("--head conv and --tiles are for --task segmentation")
    reading = {name: getattr(given, name) for name in ("image_column", "label_column", "max_pixels")}
    source = open_source(
        given.data,
        channels=network.backbone.channels,
        held_out_share=network.held_out_share(given.data),
        several_labels=given.multi_label,
        **reading,
    )
    data = classifier_data(source, per_class=given.limit_per_class, seed=given.seed, multi_label=given.multi_label)
    plan = plan_of(given, data, device)
    model = classifier(network.backbone, len(data.names), head=plan.head, seed=given.seed)
    if plan.is_frozen:
        freeze(model)
    console = Console(highlight=False)
    with locked(given.out):
        if not _claim(given, plan, data, network):
            console.print(f"{escape(given.out)} is finished: {_summary(read_json(given.out / METRICS))}")
            return
        console.print(
            f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test images of "
            f"{len(data.names)} classes ({data.phrase})."
        )
        console.print(f"{escape(network.name)}: {plan}.")
        began = time.process_time()
        chosen = _train(model, network, data, plan, given.out, device)
        seconds = time.process_time() - began
        save_classifier(model, network, data.names, given.out, is_multi_label=given.multi_label)
        metrics = _judge(model.to(device), network, data, given.out, device)
        metrics |= {"processor_seconds": round(seconds, 1), "chosen": chosen, "data": data.phrase, "how": str(plan)}
        metrics["command"] = shlex.join(_command(given))
        channels = network.backbone.channels
        write_classifier_card(
            given.out, network.name, given.data, data.names, metrics, _command(given), channels=channels
        )
        write_text(given.out / METRICS, json.dumps(metrics, indent=2) + "\n")
        shutil.rmtree(given.out / "checkpoints", ignore_errors=True)
    console.print(_summary(metrics))
    console.print(f"Written to {escape(given.out)}. {next_commands(given.out, '--out predictions.csv')}")


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
    )
    plan = TrainingPlan(is_frozen, given.head, augment, flip, given.class_weights, settings, given.multi_label)
    useless = {
        "epochs": given.epochs, "lr": given.lr, "batch_size": given.batch_size, "mixup": given.mixup,
        "cutmix": given.cutmix, "smoothing": given.smoothing,
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


def _network(given: options.FinetuneClassifier) -> Network:
    if given.image_size is None:
        return open_network(given.model, untrained=given.untrained)
    if is_run(given.model):
        raise ValueError(f"the run in {given.model} knows its image size; leave --image_size out")
    return open_network(given.model, untrained=given.untrained, img_size=given.image_size)


def _claim(given: options.FinetuneClassifier, plan: TrainingPlan, data: ClassifierData, network: Network) -> bool:
    """Note what is trained; False if it is finished.

    Raises:
        ValueError: if the folder holds another classifier.
    """
    settings = {name: value for name, value in asdict(plan.settings).items() if name != "workers"}
    plan_now = {
        **{name: value for name, value in asdict(plan).items() if name != "settings"},
        **settings,
        "weights": fingerprint(network.backbone),
        "training images": fingerprint([f"{path} {label}" for path, label in _listed(data.train)]),
        "validation images": fingerprint([f"{path} {label}" for path, label in _listed(data.validation)]),
        "classes": data.names,
    }
    now = json.loads(json.dumps({"model": network.name, "data": given.data, "plan": plan_now}))
    return note_plan(now, given.out / BEGUN, given.out / METRICS, kind="classifier")


def _listed(images: Images) -> list[tuple[str, int]]:
    return list(zip(paths_of(images), labels_of(images).tolist(), strict=True))


def _train(
    model: nn.Module, network: Network, data: ClassifierData, plan: TrainingPlan, out: Path, device: str
) -> dict[str, Any]:
    """Train in place; returns what was chosen on the validation images, and by what."""
    evaluate = network.evaluate
    weights = data.weights() if plan.class_weights == "balanced" else None
    validation = EvalLoader(EvalSet(data.validation, evaluate), BATCH, plan.settings.workers)
    if plan.is_fitted:
        model.to(device)
        training = EvalLoader(EvalSet(data.train, evaluate), BATCH, plan.settings.workers)
        path = fit_linear_head(
            model, head_inputs(model, training, device), head_inputs(model, validation, device), class_weights=weights
        )
        best = max(path, key=lambda strength: (path[strength], -strength))
        return {
            "strength": best,
            "validation_accuracy": path[best],
            "strengths": [{"strength": strength, "validation_accuracy": found} for strength, found in path.items()],
        }
    augment = classifier_augmentation(plan.augment, evaluate, flip=plan.flip, mean=network.mean, std=network.std)
    rows = train_classifier(
        model,
        data.train,
        augment,
        validation,
        classes=len(data.names),
        settings=plan.settings,
        out=out,
        device=device,
        class_weights=weights,
        labeling=data.labeling,
    )
    return {**best_of(rows, data.labeling.measure), "epochs": rows}


def _judge(model: nn.Module, network: Network, data: ClassifierData, out: Path, device: str) -> dict[str, Any]:
    """The numbers on the test images, looked at once, and pictures of what is wrong."""
    logits, labels = logits_of(model, EvalLoader(EvalSet(data.test, network.evaluate), BATCH), device)
    if isinstance(data.labeling, LabelSets):
        return _judge_sets(logits, labels, data, data.labeling, out)
    guesses = logits.argmax(dim=1)
    correct = guesses == labels
    classes = len(data.names)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels.numpy(), guesses.numpy()), 1)
    write_figure(draw_confusion(counts, data.names), out / "confusion.png")
    _draw_mistakes(logits, labels, data, out / "worst-mistakes.png")
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


def _judge_sets(logits: Tensor, labels: Tensor, data: ClassifierData, labeling: LabelSets, out: Path) -> dict[str, Any]:
    """The same, where an image may have several labels: the classes with a probability of at least one half."""
    targets, guesses = labeling.targets(labels).bool(), logits >= 0
    precision = average_precisions(logits, targets.float())
    hits = (targets & guesses).sum(dim=0).double()
    f1 = (2 * hits / (targets.sum(dim=0) + guesses.sum(dim=0)).clamp(min=1)).numpy()
    _draw_wrong_sets(logits, targets, data, out / "worst-mistakes.png")
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


def _draw_wrong_sets(logits: Tensor, targets: Tensor, data: ClassifierData, file: Path) -> None:
    """The test images with the largest loss among those that are not exactly right."""
    images, names = _as_read(data.test), data.names
    loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(dim=1)
    wrong = ((logits >= 0) != targets).any(dim=1).nonzero().flatten()
    worst = wrong[loss[wrong].argsort(descending=True)][:WORST].tolist()
    file.unlink(missing_ok=True)
    if worst:
        said = [
            [", ".join(np.array(names)[row[place].numpy()]) or "none" for row in (targets, logits >= 0)]
            for place in worst
        ]
        write_figure(draw_named([images[place].image for place in worst], [f"{a}\nas {b}" for a, b in said]), file)


def _draw_mistakes(logits: Tensor, labels: Tensor, data: ClassifierData, file: Path) -> None:
    """The test images whose true class got the smallest probability, worst first."""
    images, names = _as_read(data.test), data.names
    shares = logits.softmax(dim=1)
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten()
    worst = wrong[shares[wrong, labels[wrong]].argsort()][:WORST].tolist()
    file.unlink(missing_ok=True)
    if not worst:
        return
    captions = []
    for place in worst:
        guess = int(logits[place].argmax())
        captions.append(f"{names[int(labels[place])]}\nas {names[guess]} ({shares[place, guess]:.0%})")
    write_figure(draw_named([images[place].image for place in worst], captions), file)


def _as_read(images: Images) -> Images:
    """Without the images that evaluation has left out: their places are those of the logits."""
    bad = [image.index for image in images.unreadable]
    return images.subset(np.flatnonzero(~np.isin(images.positions, bad)))


def _summary(metrics: Mapping[str, Any]) -> str:
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


def _command(given: options.FinetuneClassifier) -> list[str]:
    words = ["patchcast", "finetune"]
    for name, typed in words_of(given):
        words += typed[1:] if name == "model" else typed
    return words
