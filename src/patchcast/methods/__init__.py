"""Methods: one short function each, holding all of its paper's defaults."""

from __future__ import annotations

from patchcast.methods.aim import aim, aim_codes, aim_features
from patchcast.methods.beit import beit
from patchcast.methods.data2vec import data2vec
from patchcast.methods.ijepa import ijepa
from patchcast.methods.imagegpt import imagegpt, imagegpt_masked, on_codes
from patchcast.methods.mae import mae
from patchcast.methods.method import Method
from patchcast.methods.simmim import simmim
from patchcast.plans import FixedOrder, Planner, RandomOrder, RasterOrder, coarse_to_fine, hilbert, snake

ORDERS: dict[str, Planner] = {
    "raster": RasterOrder(),
    "causal": RasterOrder(random_prefix=False),
    "snake": FixedOrder(snake),
    "hilbert": FixedOrder(hilbert),
    "coarse_to_fine": FixedOrder(coarse_to_fine),
    "random": RandomOrder(),
}
"""Orders by name, for `--method_args '{"plan": "hilbert"}'`."""

METHODS: dict[str, Method] = {
    "aim": Method(aim, lr_per_256=6.25e-5, crop_scale=(0.4, 1.0), clip=1.0, named={"plan": ORDERS}),
    "aim_features": Method(
        aim_features, lr_per_256=6.25e-5, crop_scale=(0.4, 1.0), clip=1.0, takes_steps=True, named={"plan": ORDERS}
    ),
    "beit": Method(beit, lr_per_256=1.875e-4, crop_scale=(0.08, 1.0), clip=3.0, betas=(0.9, 0.999), codes="patches"),
    "data2vec": Method(data2vec, lr_per_256=1e-3, crop_scale=(0.2, 1.0), clip=4.0, takes_steps=True),
    "ijepa": Method(ijepa, lr_per_256=1.25e-4, crop_scale=(0.3, 1.0), flip=False, betas=(0.9, 0.999), takes_steps=True),
    "imagegpt": Method(imagegpt, lr_per_256=2e-3, crop_scale=(1.0, 1.0), weight_decay=0.0, codes="colors", causal=True),
    "imagegpt_masked": Method(
        imagegpt_masked, lr_per_256=2e-3, crop_scale=(1.0, 1.0), weight_decay=0.0, codes="colors"
    ),
    "mae": Method(mae, lr_per_256=1.5e-4, crop_scale=(0.2, 1.0)),
    "simmim": Method(simmim, lr_per_256=1e-4, crop_scale=(0.67, 1.0), betas=(0.9, 0.999), clip=5.0),
}
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
    "ijepa",
    "imagegpt",
    "imagegpt_masked",
    "mae",
    "on_codes",
    "simmim",
]
