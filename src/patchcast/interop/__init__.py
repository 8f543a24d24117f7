"""Weights in from the papers', transformers' and timm's formats, and out again."""

from patchcast.interop.ijepa import load_ijepa
from patchcast.interop.mae import load_mae, mae_from_transformers, save_mae

__all__ = ["load_ijepa", "load_mae", "mae_from_transformers", "save_mae"]
