"""Full fine-tuning with labels, with layer-wise learning-rate decay."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.capabilities import Readout
from patchcast.evaluation.features import Loader
from patchcast.modes import evaluating
from patchcast.schedules import warmup_cosine

READ: Readout = "mean"


@runtime_checkable
class SizedLoader(Protocol):
    """Batches of (images, labels) with a length: a `DataLoader` or a list."""

    def __iter__(self) -> Iterator[Sequence[Tensor]]: ...

    def __len__(self) -> int: ...


class Classifier(nn.Module):
    """The mean of a backbone's units and a linear layer that is initialized to zero.

    The mean alone, whatever probes read: it is what timm's classifiers have, and `patchcast finetune` leaves.

    >>> import timm
    >>> from patchcast.backbones.sequence import ViT
    >>> backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    >>> Classifier(backbone, classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        with evaluating(backbone):
            image = torch.zeros(1, backbone.channels, *backbone.image_size, device=next(backbone.parameters()).device)
            width = backbone.pool(image, READ).shape[1]
        self.classify = nn.Linear(width, classes)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.classify(self.backbone.pool(images, READ))


@dataclass(frozen=True)
class FinetuneResult:
    """The result of fine-tuning: test accuracy in [0, 1], the images classified correctly, and the classifier."""

    accuracy: float
    correct: Bool[Tensor, " N"]
    model: Classifier


def layer_decay_groups(
    model: Classifier, *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by `layer_decay` from each block to the one before it (BEiT, MAE).

    The classifier has `lr`, the last block and the final norm `lr * layer_decay`, and so on down to the patch
    embedding. Norms, biases, positions and class tokens have no weight decay. Blocks are identified by timm's
    `group_matcher`; parameters that no feature depends on are left out.

    >>> import timm
    >>> from patchcast.backbones.sequence import ViT
    >>> model = Classifier(ViT(timm.create_model("test_vit", img_size=32, patch_size=8)), classes=10)
    >>> sorted({round(g["lr"], 3) for g in layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5)})
    [0.008, 0.016, 0.031, 0.062, 0.125, 0.25, 0.5, 1.0]

    Raises:
        ValueError: if timm gives this architecture no `group_matcher` and `layer_decay` is not 1.
    """
    backbone = model.backbone
    for parameter in backbone.unused_parameters():
        parameter.requires_grad_(False)
    undecayed: Sequence[str] = list(getattr(backbone.model, "no_weight_decay", tuple)())
    if layer_decay == 1.0:  # the same rate for all blocks
        alike = param_groups_weight_decay(backbone.model, weight_decay, no_weight_decay_list=undecayed)
        groups = [{**group, "lr_scale": 1.0} for group in alike]
    elif callable(getattr(backbone.model, "group_matcher", None)):
        groups = param_groups_layer_decay(
            backbone.model, weight_decay=weight_decay, no_weight_decay_list=undecayed, layer_decay=layer_decay
        )
    else:
        raise ValueError(f"{backbone.name} has no group_matcher in timm, which layer-wise decay needs")
    # timm counts its own head, if there is one, as the last layer; here that is the classifier.
    last = max(group["lr_scale"] for group in groups)
    scaled = [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": lr * layer_decay * group["lr_scale"] / last,
        }
        for group in groups
    ]
    head = model.classify
    return [
        *scaled,
        {"params": [head.weight], "weight_decay": weight_decay, "lr": lr},
        {"params": [head.bias], "weight_decay": 0.0, "lr": lr},
    ]


def finetune(
    backbone: Backbone,
    train: SizedLoader,
    test: Loader,
    *,
    classes: int,
    lr: float = 1e-3,
    layer_decay: float = 0.65,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> FinetuneResult:
    """Train and test a copy of the backbone with a linear classifier on its embedding; `backbone` is not changed.

    AdamW, linear warm-up and cosine to 0, gradients clipped at 1 (MAE, He et al. 2022, appendix A.1, without mixing
    images; augmentation is the training loader's).

    >>> import timm
    >>> from patchcast.backbones.sequence import ViT
    >>> backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    >>> batches = [(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))]
    >>> finetune(backbone, batches, batches, classes=2).accuracy
    0.5

    Args:
        train: the batches of the whole run, epoch after epoch; each batch is one step.
        classes: number of classes; labels are 0 to classes - 1.
        lr: of the classifier; MAE uses 1e-3 per 512 images per batch for ViT-B.
        warmup: share of the steps.
        seed: of dropout and stochastic depth; global random states are not changed.
        precision: dtype of autocast (torch.bfloat16); None computes in the weights' own.
    Raises:
        ValueError: if labels are missing or not below `classes`, or the backbone has no `group_matcher`.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Classifier(copy.deepcopy(backbone), classes).to(device).train()
        groups = layer_decay_groups(model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay)
        optimizer = torch.optim.AdamW(groups)
        shape = partial(warmup_cosine, steps=len(train), warmup=warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        for images, labels in train:
            _check_labels(labels, classes)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                loss = F.cross_entropy(model(images.to(device)), labels.to(device), label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
    rows = []
    with evaluating(model.eval()), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        for images, labels in test:
            _check_labels(labels, classes)
            rows.append(model(images.to(device)).argmax(dim=1).cpu() == labels)
    correct = torch.cat(rows)
    return FinetuneResult(float(correct.double().mean()), correct, model)


def _check_labels(labels: Int[Tensor, " B"], classes: int) -> None:
    if int(labels.min()) < 0:
        raise ValueError("the source has no labels; a probe needs them")
    if int(labels.max()) >= classes:
        raise ValueError(f"label {int(labels.max())} is not below the number of classes, {classes}")
