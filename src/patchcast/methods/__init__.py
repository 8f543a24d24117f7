"""Methods: one short function each, holding all of its paper's defaults."""

from patchcast.methods.aim import aim
from patchcast.methods.mae import mae

__all__ = ["aim", "mae"]
