"""Fine-tuning from the first step to the best epoch: resumable, and the same however often it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from timm.data import Mixup
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from patchcast.classification.labeling import ONE_LABEL, Labeling
from patchcast.data import EpochSampler, EvalLoader, Images, TrainSet, loader
from patchcast.data.seeds import mix_seed
from patchcast.files import read_weights, write_weights
from patchcast.modes import evaluating
from patchcast.recipe import Precision
from patchcast.schedules import warmup_cosine
from patchcast.training import checkpoints
from patchcast.training.checkpoints import Checkpoint
from patchcast.training.ending import Ending
from patchcast.training.progress import ProgressLine, Throughput

BEST = "best.safetensors"
WEIGHT_DECAY, CLIP, WARMUP = 0.05, 1.0, 0.1


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained.

    Attributes:
        lr: peak rate of the head, with AdamW.
        layer_decay: of the rate, from each block to the one before it.
        mixup, cutmix: the alphas of timm's Mixup; 0 for neither.
        smoothing: of the labels.
        is_frozen: the backbone is not trained.
        precision: of matrix products in training; None: bf16 on a GPU, else fp32.
    """

    epochs: int
    batch_size: int
    lr: float
    layer_decay: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    is_frozen: bool = False
    seed: int = 0
    workers: int = 0
    precision: Precision | None = None

    def plain(self) -> dict[str, Any]:
        """All that the weights depend on."""
        return {name: value for name, value in asdict(self).items() if name != "workers"}


@dataclass
class Timed:
    """Batches whose waiting time is not measured; what a `Throughput` asks for."""

    batch_size: int
    waited: float = 0.0


def train_classifier(
    model: nn.Module,
    images: Images,
    augment: Callable[[Tensor, int], Tensor],
    validation: EvalLoader,
    *,
    classes: int,
    settings: Settings,
    out: Path,
    device: str = "cpu",
    class_weights: Float[Tensor, " K"] | None = None,
    labeling: Labeling = ONE_LABEL,
) -> list[dict[str, Any]]:
    """Train in place, from the last checkpoint under `out` if there is one; ends with the weights of the best epoch.

    The best epoch is the one with the highest measure on the validation images (accuracy, where an image has one
    label), and the lowest loss among equals. All chance in a step comes from (seed, step), so a run that resumes
    reaches the same weights.

    Returns:
        a row for each epoch: its number, training loss, validation loss and measure.
    Raises:
        InterruptedError: for SIGTERM, after a checkpoint; KeyboardInterrupt for Ctrl-C.
        ValueError: if the loss is NaN or infinite.
    """
    weights = None if class_weights is None else class_weights.to(device)
    mix = _mixing(settings, classes)
    # Mixup has smoothed its own labels.
    smoothing = settings.smoothing if mix is None else 0.0
    return train_epochs(
        model,
        TrainSet(images, augment, settings.seed),
        groups=_groups(model, settings),
        loss=lambda logits, targets: labeling.loss(logits, targets, weights, smoothing),
        validate=lambda: labeling.judge(*logits_of(model, validation, device)),
        measure=labeling.measure,
        train_mode=lambda: _train_mode(model, settings),
        settings=settings,
        out=out,
        device=device,
        mix=mix,
    )


Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def train_epochs(
    model: nn.Module,
    train_set: Any,
    *,
    groups: list[dict[str, Any]],
    loss: Callable[[Tensor, Tensor], Tensor],
    validate: Callable[[], tuple[float, float]],
    measure: str,
    train_mode: Callable[[], object],
    settings: Settings,
    out: Path,
    device: str,
    mix: Mix | None = None,
) -> list[dict[str, Any]]:
    """The loop of `train_classifier`, for any targets.

    Args:
        train_set: examples by the keys of an `EpochSampler`: an image and its target.
        groups: of parameters, with `lr_scale`.
        loss: of outputs and targets.
        validate: loss and measure of the model as it is.
        train_mode: puts the model into training mode.
        mix: changes images and targets together, by the step.
    """
    model.to(device)
    batch_size = min(settings.batch_size, len(train_set))
    if mix is not None:
        batch_size -= batch_size % 2
    per_epoch = max(1, len(train_set) // batch_size)
    steps = per_epoch * settings.epochs
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    step, rows, best, total = 0, list[dict[str, Any]](), (-1.0, 0.0), 0.0
    resumed = checkpoints.load_latest(out)
    if resumed is not None:
        step = resumed.step
        model.load_state_dict(resumed.model)
        checkpoints.load_optimizer_state(optimizer, model, resumed.optimizer)
        state = resumed.looks["classifier"]
        rows, best, total = list(state["rows"]), (state["accuracy"], state["loss"]), state["total"]

    def save() -> None:
        state = {"rows": rows, "accuracy": best[0], "loss": best[1], "total": total}
        moments = checkpoints.optimizer_state(optimizer, model)
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        checkpoints.save(Checkpoint(step, weights, moments, {"step": step}, {"classifier": state}), out / "checkpoints")

    sampler = EpochSampler(len(train_set), batch_size, seed=settings.seed, steps=steps, start_step=step)
    batches = loader(train_set, sampler, settings.workers)
    speed = Throughput(Timed(batch_size))
    line = ProgressLine("fine-tuning", speed, steps=steps, first=step)
    ending = Ending()
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), ending.listening(), line:
        train_mode()
        for pictures, labels in batches:
            speed.begin(step)
            pictures, targets = pictures.to(device), labels.to(device)
            if mix is not None:
                pictures, targets = mix(pictures, targets, step)
            torch.manual_seed(mix_seed(settings.seed, step))
            shape = warmup_cosine(step, steps=steps, warmup=WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * group["lr_scale"] * shape
            with autocast_on(device, settings.precision), explicit_on_cpu(model, settings.precision, device):
                logits = model(pictures)
            found_loss = loss(logits.float(), targets)
            optimizer.zero_grad()
            found_loss.backward()
            clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], CLIP)
            optimizer.step()
            step += 1
            read = float(found_loss.detach())
            if not np.isfinite(read):
                raise ValueError(f"the loss is {read} at step {step:,}; a lower --lr may help (it is {settings.lr:g})")
            total += read
            ends = step % per_epoch == 0
            speed.measure(step, pauses=ends)
            line.show(step, read)
            if ends:
                with line.evaluating():
                    found = validate()
                line.evaluated({f"validation_{measure}": found[1]})
                rows.append(
                    {
                        "epoch": step // per_epoch, "loss": total / per_epoch,
                        "validation_loss": found[0], f"validation_{measure}": found[1],
                    }
                )  # fmt: skip
                total = 0.0
                if not rows[:-1] or (found[1], -found[0]) > (best[0], -best[1]):
                    best = found[1], found[0]
                    write_weights(_whole(model), out / "checkpoints" / BEST)
                save()
                train_mode()
            if ending.agreed() and step < steps:
                if not ends:
                    save()
                ending.raise_at(step)
    model.load_state_dict(read_weights(out / "checkpoints" / BEST))
    return rows


def logits_of(model: nn.Module, batches: EvalLoader, device: str) -> tuple[Float[Tensor, "N K"], Int[Tensor, " N"]]:
    """The logits of every image that can be read, and their labels, in the order of the images."""
    logits, labels = [], []
    with evaluating(model), autocast_on(device):
        for images, targets in batches:
            logits.append(model(images.to(device)).float().cpu())
            labels.append(targets)
    if not logits:
        raise ValueError("none of the images can be read")
    return torch.cat(logits), torch.cat(labels)


def best_of(rows: list[dict[str, Any]], measure: str = "accuracy") -> dict[str, Any]:
    """The row of the epoch whose weights are kept."""
    return max(rows, key=lambda row: (row[f"validation_{measure}"], -row["validation_loss"]))


def autocast_on(device: str, precision: Precision | None = None) -> torch.autocast:
    """Matrix products inside are in this precision; None for bf16 on a GPU, else fp32."""
    is_bf16 = device.startswith("cuda") if precision is None else precision == "bf16"
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=is_bf16)


@contextmanager
def explicit_on_cpu(model: nn.Module, precision: Precision | None, device: str) -> Iterator[None]:
    """In bf16 on a CPU attention takes explicit products, which are faster there than torch's fused kernel."""
    layers: list[nn.Module] = []
    if precision == "bf16" and device == "cpu":
        layers = [layer for layer in model.modules() if getattr(layer, "fused_attn", None) is True]
    for layer in layers:
        layer.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.fused_attn = True  # type: ignore[assignment]


def _train_mode(model: nn.Module, settings: Settings) -> None:
    """A frozen backbone has no dropout, and no statistics of batches to follow."""
    model.train(not settings.is_frozen)


def _whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def _groups(model: Any, settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups with `lr_scale`, the head's being 1."""
    undecayed = list(getattr(model, "no_weight_decay", tuple)())
    if settings.is_frozen or settings.layer_decay == 1.0:
        groups = param_groups_weight_decay(model, WEIGHT_DECAY, no_weight_decay_list=undecayed)
        return [{**group, "lr_scale": 1.0} for group in groups]
    if not callable(getattr(model, "group_matcher", None)):
        raise ValueError(f"timm does not tell the blocks of {type(model).__name__} apart: use --layer_decay 1")
    return param_groups_layer_decay(
        model, weight_decay=WEIGHT_DECAY, no_weight_decay_list=undecayed, layer_decay=settings.layer_decay
    )


def _mixing(settings: Settings, classes: int) -> Mix | None:
    """timm's Mixup, seeded by the step; it draws from NumPy's global state, which is put back."""
    if not settings.mixup and not settings.cutmix:
        return None
    mixup = Mixup(
        settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=classes, mode="batch"
    )

    def mix(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(mix_seed(settings.seed, step, 1) % 2**32)  # noqa: NPY002
        try:
            return mixup(images, labels)
        finally:
            np.random.set_state(before)  # noqa: NPY002

    return mix
