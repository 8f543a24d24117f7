"""The seam over timm: any vision transformer, entered between its embedding and its blocks."""

from patchcast.backbones.base import Backbone, CannotError, Grid, Tokens
from patchcast.backbones.painted import Painted
from patchcast.backbones.wrap import wrap

__all__ = ["Backbone", "CannotError", "Grid", "Painted", "Tokens", "wrap"]
