"""Weights from and to the formats of the papers, transformers and timm."""

from patchcast.interop.aim_weights import load_aim, load_aim_probe
from patchcast.interop.ijepa_weights import load_ijepa
from patchcast.interop.imagegpt_weights import (
    load_imagegpt,
    load_imagegpt_classifier,
    save_imagegpt,
    save_imagegpt_classifier,
)
from patchcast.interop.mae_weights import load_mae, mae_from_transformers, save_mae

__all__ = [
    "load_aim",
    "load_aim_probe",
    "load_ijepa",
    "load_imagegpt",
    "load_imagegpt_classifier",
    "load_mae",
    "mae_from_transformers",
    "save_imagegpt",
    "save_imagegpt_classifier",
    "save_mae",
]
