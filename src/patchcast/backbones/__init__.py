"""Backbones over timm: any vision transformer, split between its embedding and its blocks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchcast.backbones.adapters import wrap
    from patchcast.backbones.backbone import Backbone, CannotError, Tokens
    from patchcast.backbones.painted import Painted
    from patchcast.geometry import Grid

__all__ = ["Backbone", "CannotError", "Grid", "Painted", "Tokens", "wrap"]

HOMES = {
    "Grid": "patchcast.geometry",
    "Painted": "patchcast.backbones.painted",
    "wrap": "patchcast.backbones.adapters",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: `patchcast models` needs neither torch nor timm."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "patchcast.backbones.backbone")), name)
