"""From a plan to the weights of a segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

from patchcast.classification.training import WEIGHT_DECAY, Settings, train_epochs
from patchcast.data import Augment
from patchcast.data.masks import IGNORED
from patchcast.segmentation.masked_data import AugmentedMasks, MaskedData
from patchcast.segmentation.segmenter import Segmenter
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter
from patchcast.segmentation.segmenter_plan import SegmenterPlan
from patchcast.segmentation.segmenter_results import judge_segmenter


def fit_segmenter(
    model: Segmenter,
    tuned: FineTunedSegmenter,
    data: MaskedData,
    plan: SegmenterPlan,
    augment: Augment,
    out: Path,
    device: str,
) -> list[dict[str, Any]]:
    """Train in place, as `train_classifier` does: resumable, and it ends with the weights of the best epoch.

    Args:
        tuned: the same model, with what it takes to predict the pixels of validation images.
    Returns:
        a row for each epoch: its number, training loss, validation loss and mean IoU.
    """
    return train_epochs(
        model,
        AugmentedMasks(data.train, augment, plan.settings.seed, tiled=plan.tiled),
        groups=segmenter_groups(model, plan.settings),
        loss=lambda logits, masks: F.cross_entropy(logits, masks, ignore_index=IGNORED),
        validate=lambda: judge_segmenter(tuned, data.validation, device)[:2],
        measure="mean_iou",
        train_mode=model.train,
        settings=plan.settings,
        out=out,
        device=device,
    )


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
