"""Evaluation of backbones, one protocol per file."""

from patchcast.data.splits import draw_per_class, stratified_split
from patchcast.evaluation.attentive import AttentiveProbe, AttentiveResult, attentive_probe
from patchcast.evaluation.features import (
    Features,
    TokenFeatures,
    extract,
    extract_layers,
    extract_tokens,
    raw_pixels,
)
from patchcast.evaluation.finetuning import Classifier, FinetuneResult, finetune, layer_decay_groups
from patchcast.evaluation.intervals import Interval, accuracy_interval, mean_interval, paired_accuracy_difference
from patchcast.evaluation.knn import KnnResult, knn_accuracy, knn_probe
from patchcast.evaluation.label_budgets import FewLabels, PairedDifference, few_labels, paired_differences
from patchcast.evaluation.label_free import alpha_req, lidar, rankme
from patchcast.evaluation.linear import LinearResult, LogisticProbe, linear_probe, logistic_path
from patchcast.evaluation.ridge import ridge_accuracy
from patchcast.modes import evaluating

__all__ = [
    "AttentiveProbe",
    "AttentiveResult",
    "Classifier",
    "Features",
    "FewLabels",
    "FinetuneResult",
    "Interval",
    "KnnResult",
    "LinearResult",
    "LogisticProbe",
    "PairedDifference",
    "TokenFeatures",
    "accuracy_interval",
    "alpha_req",
    "attentive_probe",
    "draw_per_class",
    "evaluating",
    "extract",
    "extract_layers",
    "extract_tokens",
    "few_labels",
    "finetune",
    "knn_accuracy",
    "knn_probe",
    "layer_decay_groups",
    "lidar",
    "linear_probe",
    "logistic_path",
    "mean_interval",
    "paired_accuracy_difference",
    "paired_differences",
    "rankme",
    "raw_pixels",
    "ridge_accuracy",
    "stratified_split",
]
