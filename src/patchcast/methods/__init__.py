"""Methods: one short function each, holding all of its paper's defaults."""

from patchcast.methods.aim import aim
from patchcast.methods.beit import beit
from patchcast.methods.ijepa import ijepa
from patchcast.methods.mae import mae
from patchcast.methods.simmim import simmim

__all__ = ["aim", "beit", "ijepa", "mae", "simmim"]
