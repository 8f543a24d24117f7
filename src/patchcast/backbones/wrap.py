"""From a timm name, or a model, to the backbone that knows where to enter it."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from patchcast.backbones.base import Backbone
from patchcast.backbones.sequence import ViT

ADAPTERS: dict[str, type[Backbone]] = {
    "VisionTransformer": ViT,
}


def wrap(model: str | nn.Module, **timm_kwargs: Any) -> Backbone:
    """The backbone over a timm model, given by name or as it is.

    >>> wrap("test_vit", img_size=64).can >= {"drop", "attend"}
    True

    Args:
        model: a name for `timm.create_model` (random weights unless `pretrained=True` is given), or a model.
        timm_kwargs: arguments of `timm.create_model`, such as `img_size` or `in_chans`; only with a name.
    Raises:
        ValueError: if timm knows no model of this name, or no adapter knows the model's class.
    """
    if isinstance(model, str):
        model = create(model, **timm_kwargs)
    elif timm_kwargs:
        raise ValueError(f"{type(model).__name__} is already built, so {', '.join(timm_kwargs)} cannot be changed")
    for cls in type(model).__mro__:
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__](model)
    raise ValueError(f"no adapter knows {type(model).__name__}; add one to patchcast.backbones.wrap.ADAPTERS")


def create(name: str, **timm_kwargs: Any) -> nn.Module:
    """`timm.create_model`, whose error names what is near."""
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.split(".")[0], known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it knows {len(known)}, see `patchcast models`"
        raise ValueError(f"timm has no model {name!r}; {hint}")
    return timm.create_model(name, **timm_kwargs)
