"""What backbones can do. Apart from `base.py`, so that it can be asked without importing torch."""

from __future__ import annotations

from typing import Literal

Capability = Literal["drop", "attend", "shift", "replace", "paint"]

CAPABILITIES: dict[Capability, str] = {
    "drop": "run on the visible units alone",
    "attend": "obey any attention mask",
    "shift": "predict every unit from those before it, the first from a start token",
    "replace": "put a mask token in the place of hidden units",
    "paint": "be shown images whose hidden units are painted over",
}
