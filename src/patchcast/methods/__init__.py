"""Methods: one short function each, holding all of its paper's defaults."""

from __future__ import annotations

from patchcast.methods.aim import aim
from patchcast.methods.base import Method
from patchcast.methods.mae import mae

METHODS: dict[str, Method] = {
    "aim": Method(aim, lr_per_256=6.25e-5, crop_scale=(0.4, 1.0), clip=1.0),
    "mae": Method(mae, lr_per_256=1.5e-4, crop_scale=(0.2, 1.0), clip=None),
}
"""What the command line knows by name. In Python, call the functions."""

__all__ = ["METHODS", "Method", "aim", "mae"]
