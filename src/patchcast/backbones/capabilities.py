"""What backbones can do, what each method needs, and how features are read out. Imports neither torch nor timm."""

from __future__ import annotations

from typing import Literal

Capability = Literal["drop", "attend", "shift", "replace", "paint"]

CAPABILITIES: dict[Capability, str] = {
    "drop": "run on the visible units alone",
    "attend": "apply any attention mask",
    "shift": "predict every unit from those before it, the first from a start token",
    "replace": "replace hidden units by a mask token",
    "paint": "run on images whose hidden units are painted over",
}

NEEDS: dict[str, tuple[Capability, ...]] = {
    "aim": ("attend",),
    "aim_features": ("attend",),
    "beit": ("replace", "paint"),
    "data2vec": ("drop", "replace", "paint"),
    "distill": ("drop", "replace", "paint"),
    "ijepa": ("drop", "replace", "paint"),
    "mae": ("drop",),
    "maskfeat": ("replace", "paint"),
    "nepa": ("attend",),
    "simmim": ("replace", "paint"),
}
"""What each method of `patchcast.methods.METHODS` needs of a timm backbone: the first of these that it has."""

OWN_NETWORKS = {"imagegpt": "shift", "imagegpt_masked": "replace"}
"""Methods that run on an ImageGPT network instead, and what they need of it."""


def is_imagegpt(model: str) -> bool:
    """Whether a model's name is that of an ImageGPT network, which timm does not have.

    >>> is_imagegpt("imagegpt_s"), is_imagegpt("vit_tiny_patch16_224")
    (True, False)
    """
    return model.startswith("imagegpt")


METHOD_NAMES = (*sorted({*NEEDS, *OWN_NETWORKS}),)
"""The names in `METHODS`, to check a name without importing torch. A test keeps the two equal."""

AUTO = "auto"
"""Given as the method's name, it lets `patchcast.runs.auto` choose the method."""

Readout = Literal["mean", "mean_std", "blocks", "class"]
"""Names of `patchcast.backbones.readout.READOUTS`: how the units of an image become one feature."""

READ_AS: dict[Readout, str] = {
    "mean": "the mean of its units",
    "mean_std": "the mean and the standard deviation of its units",
    "blocks": "the mean and the standard deviation of every block's units",
    "class": "its class token",
}
"""What a feature is, in the caption of a table."""

DEFAULT_READOUT: Readout = "mean_std"
"""The readout of every probe, of `embed` and `search`, and of ONNX and exported programs."""
