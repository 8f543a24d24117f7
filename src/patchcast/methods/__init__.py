"""Methods: one short function each, holding all of its paper's defaults."""

from __future__ import annotations

from typing import Any

from patchcast.methods.aim import aim, aim_codes, aim_features
from patchcast.methods.beit import beit
from patchcast.methods.data2vec import data2vec
from patchcast.methods.distill import distill
from patchcast.methods.ijepa import ijepa
from patchcast.methods.imagegpt import imagegpt, imagegpt_masked, on_codes
from patchcast.methods.mae import mae
from patchcast.methods.maskfeat import maskfeat
from patchcast.methods.method import Method
from patchcast.methods.nepa import nepa
from patchcast.methods.simmim import simmim
from patchcast.plans import FixedOrder, Planner, RandomOrder, RasterOrder, coarse_to_fine, hilbert, snake
from patchcast.predictors import usable_width

ORDERS: dict[str, Planner] = {
    "raster": RasterOrder(),
    "causal": RasterOrder(random_prefix=False),
    "snake": FixedOrder(snake),
    "hilbert": FixedOrder(hilbert),
    "coarse_to_fine": FixedOrder(coarse_to_fine),
    "random": RandomOrder(),
}
"""Orders by name, for `--method_args '{"plan": "hilbert"}'`."""


def _decoder(width: int, blocks: int) -> dict[str, Any]:
    """MAE's 8 blocks of width 512 for a ViT-B, of 12 blocks of width 768, and not larger for larger models."""
    return {
        "decoder_width": usable_width(min(512, 2 * width // 3)),
        "decoder_depth": max(1, min(8, 2 * blocks // 3)),
    }


def _head(width: int, blocks: int) -> dict[str, Any]:
    """AIM's 12 blocks for a trunk of 24."""
    return {"head_depth": max(1, min(12, blocks // 2))}


def _predictor(width: int, blocks: int) -> dict[str, Any]:
    """I-JEPA's 6 blocks for a ViT-B, of 12, and 12 for ViT-L and ViT-H."""
    return {"predictor_depth": max(1, min(12, blocks // 2))}


_AIM: dict[str, Any] = {
    "lr_per_256": 6.25e-5,
    "paper_width": 1536,
    "crop_scale": (0.4, 1.0),
    "clip": 1.0,
    "named": {"plan": ORDERS},
    "sizes": _head,
}
_IMAGEGPT: dict[str, Any] = {  # the rate is that of the paper's iGPT-L
    "lr_per_256": 2e-3,
    "paper_batch": 128,
    "paper_width": 1536,
    "crop_scale": (1.0, 1.0),
    "weight_decay": 0.0,
    "codes": "colors",
}
METHODS: dict[str, Method] = {
    "aim": Method(aim, **_AIM, few_optimizer="muon"),
    "aim_features": Method(aim_features, **_AIM, takes_steps=True, few={"pixel_weight": 0.5}, few_optimizer="muon"),
    "beit": Method(
        beit, lr_per_256=1.875e-4, paper_batch=2048, crop_scale=(0.08, 1.0), clip=3.0, betas=(0.9, 0.999),
        codes="patches", few_optimizer="muon",
    ),
    "data2vec": Method(
        data2vec, lr_per_256=1e-3, paper_batch=256, highest_lr=1.5e-3, crop_scale=(0.2, 1.0), clip=4.0,
        takes_steps=True,
        few={"masks": 2, "momentum": 0.99, "decoder_width": 128, "decoder_depth": 3, "pixel_weight": 0.5},
    ),
    "distill": Method(  # MAE's settings: no paper trains exactly this
        distill, lr_per_256=1.5e-4, crop_scale=(0.2, 1.0), sizes=_decoder, teacher="required",
        few_optimizer="muon",
    ),
    "ijepa": Method(
        ijepa, lr_per_256=1.25e-4, paper_batch=2048, highest_lr=1.5e-3, crop_scale=(0.3, 1.0), flip=False,
        betas=(0.9, 0.999), takes_steps=True, sizes=_predictor,
        few={"predictor_depth": 3, "predictor_kernel": 5, "pixel_weight": 0.5}, few_optimizer="muon",
    ),
    "imagegpt": Method(imagegpt, **_IMAGEGPT, causal=True),
    "imagegpt_masked": Method(imagegpt_masked, **_IMAGEGPT),
    "mae": Method(
        mae, lr_per_256=1.5e-4, crop_scale=(0.2, 1.0), sizes=_decoder, teacher="optional",
        few={"decoder_depth": 3, "decoder_kernel": 3}, few_optimizer="muon",
    ),
    "maskfeat": Method(
        maskfeat, lr_per_256=2e-4, paper_batch=2048, crop_scale=(0.5, 1.0), betas=(0.9, 0.999), clip=0.02,
        few={"head_kernel": 3, "pixel_weight": 0.5}, few_optimizer="muon",
    ),
    "nepa": Method(  # MAE's: the paper's are unknown here
        nepa, lr_per_256=1.5e-4, crop_scale=(0.2, 1.0), few={"head_depth": 2, "pixel_weight": 0.5},
    ),
    "simmim": Method(
        simmim, lr_per_256=1e-4, paper_batch=2048, crop_scale=(0.67, 1.0), betas=(0.9, 0.999), clip=5.0,
        few={"head_kernel": 3, "normalize": True}, few_optimizer="muon",
    ),
}  # fmt: skip
"""The methods of the command line, by name. In Python, call the functions; `aim_codes` is available in Python only."""

__all__ = [
    "METHODS",
    "ORDERS",
    "Method",
    "aim",
    "aim_codes",
    "aim_features",
    "beit",
    "data2vec",
    "distill",
    "ijepa",
    "imagegpt",
    "imagegpt_masked",
    "mae",
    "maskfeat",
    "nepa",
    "on_codes",
    "simmim",
]
