"""From a plan to weights: a head fitted to its optimum, or epochs of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchcast.classification.augmentation import classifier_augmentation
from patchcast.classification.classifier_data import ClassifierData
from patchcast.classification.classifier_plan import BATCH, TrainingPlan
from patchcast.classification.frozen import fit_linear_head, head_inputs
from patchcast.classification.training import best_of, train_classifier
from patchcast.data import EvalLoader, EvalSet
from patchcast.runs.network import Network


def fit_classifier(
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
