"""`wrap`: from a timm name or a model to its backbone."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
from torch import nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.class_attention import CaiT, Volo, XCiT
from patchcast.backbones.coat import CoaT
from patchcast.backbones.conventions import built_size
from patchcast.backbones.convit import ConViT
from patchcast.backbones.crossvit import CrossViT
from patchcast.backbones.gemma4 import Gemma4
from patchcast.backbones.hiera import Hiera, HieraDet
from patchcast.backbones.mobilenetv5 import MobileNetV5
from patchcast.backbones.mvit import MViT
from patchcast.backbones.naflex import NaFlex
from patchcast.backbones.painted import Painted
from patchcast.backbones.pit import PiT
from patchcast.backbones.projected import Projected
from patchcast.backbones.relative import Beit, RelPos
from patchcast.backbones.sam import SAM
from patchcast.backbones.sequence import RoPE, ViT
from patchcast.backbones.staged import ROWS, Byob, EdgeNeXt, Levit, Nest, Staged, Swin
from patchcast.backbones.tnt import TNT
from patchcast.backbones.torchvision import TorchvisionSwin, TorchvisionViT
from patchcast.backbones.twins import Twins
from patchcast.backbones.visformer import Visformer

# By class name (the model's or a base class's): some classes are missing in the oldest timm that we support.
TIMM: dict[str, type[Backbone]] = {
    **dict.fromkeys(ROWS, Staged),
    "Beit": Beit,
    "ByobNet": Byob,
    "Cait": CaiT,
    "CoaT": CoaT,
    "ConVit": ConViT,
    "CrossVit": CrossViT,
    "DeepseekVitClassifier": Projected,
    "DeepseekVitEncoder": Projected,
    "EdgeNeXt": EdgeNeXt,
    "Eva": RoPE,
    "Gemma4VitClassifier": Gemma4,
    "Gemma4VitEncoder": Gemma4,
    "Hiera": Hiera,
    "HieraDet": HieraDet,
    "Levit": Levit,
    "MobileNetV5": MobileNetV5,
    "MobileNetV5Encoder": MobileNetV5,
    "MultiScaleVit": MViT,
    "NaFlexVit": NaFlex,
    "Nest": Nest,
    "PoolingVisionTransformer": PiT,
    "Qwen3VitClassifier": Projected,
    "Qwen3VitEncoder": Projected,
    "SwinTransformer": Swin,
    "SwinTransformerV2": Swin,
    "SwinTransformerV2Cr": Swin,
    "TNT": TNT,
    "Twins": Twins,
    "VOLO": Volo,
    "VisionTransformer": ViT,
    "VisionTransformerRelPos": RelPos,
    "VisionTransformerSAM": SAM,
    "Visformer": Visformer,
    "Xcit": XCiT,
}
TORCHVISION: dict[str, type[Backbone]] = {"SwinTransformer": TorchvisionSwin, "VisionTransformer": TorchvisionViT}
ADAPTERS: dict[str, dict[str, type[Backbone]]] = {"timm": TIMM, "torchvision": TORCHVISION}


def wrap(model: str | nn.Module, **timm_kwargs: Any) -> Backbone:
    """Make a backbone of a timm or torchvision model, or of a timm name. A backbone is returned unchanged.

    >>> sorted(wrap("test_vit", img_size=64).can)
    ['attend', 'drop', 'paint', 'replace']
    >>> wrap("test_vit3", img_size=(64, 96), in_chans=4).grid((64, 96))
    Grid(rows=4, cols=6)

    Args:
        model: a name for `timm.create_model` (random weights unless `pretrained=True` is given), or a model; or other
            words of `load_start`, which loads the weights: a run folder, `hf-hub:NAME`, `local-dir:FOLDER`, a file.
        timm_kwargs: arguments of `timm.create_model`, such as `in_chans`. `img_size` may be given for every model: if
            the weights do not depend on it, it only sets the nominal image size.
    Raises:
        ValueError: if timm has no model of this name, no adapter supports the model's class, the pretrained weights do
            not fit the arguments, or `model` is neither a name nor a model.
    """
    if not isinstance(model, str | nn.Module):
        raise ValueError(f"a backbone is made of a model of timm or torchvision, or of timm's name; got {model!r:.80}")
    if isinstance(model, Backbone):
        if timm_kwargs:
            raise ValueError(f"{model.name} is wrapped already, so {', '.join(timm_kwargs)} cannot be changed")
        return model
    size = timm_kwargs.get("img_size")
    image_size = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
    if isinstance(model, str):
        if _names_weights(model):
            timm_kwargs.pop("pretrained", None)  # they are, as their name says
            # Weights of all formats are read in a layer far above this one, which nothing but this call needs.
            opened: Backbone = import_module("patchcast.starts.opening").load_start(model, **timm_kwargs).backbone
            return opened
        model = create(model, **timm_kwargs)
    elif timm_kwargs.keys() - {"img_size"}:
        raise ValueError(f"{type(model).__name__} is already built, so {', '.join(timm_kwargs)} cannot be changed")
    adapter: Any = adapter_for(type(model))
    built = built_size(model)
    backbone = adapter(model, built or image_size)
    if image_size not in (None, backbone.image_size):
        if not backbone.takes_any_size:
            raise ValueError(
                f"this {backbone.name} was built for {backbone.image_size}, which img_size={image_size} cannot change"
            )
        backbone = adapter(model, image_size)
    return backbone


def _names_weights(words: str) -> bool:
    """Whether words name a place of weights, and not a model of timm."""
    return any(sign in words for sign in ("/", "=", "hf-hub:", "local-dir:")) or (
        not timm.is_model(words) and Path(words).exists()
    )


def adapter_for(cls: type[nn.Module]) -> type[Backbone]:
    """The adapter for a model's class or its nearest base class."""
    for base in cls.__mro__:
        known = ADAPTERS.get(base.__module__.split(".")[0], {})
        if base.__name__ in known:
            return known[base.__name__]
    if hasattr(cls, "forward_features"):
        warnings.warn(
            f'no adapter knows {cls.__name__}, so all it can do is "paint"; docs/add-a-backbone.md', stacklevel=3
        )
        return Painted
    raise ValueError(
        f"no adapter knows {cls.__name__}; give it a `forward_features` that returns a map (B, D, H, W), and "
        "`patchcast.backbones.Painted` will take it ('paint' only), or add an adapter: docs/add-a-backbone.md"
    )


def create(name: str, **timm_kwargs: Any) -> nn.Module:
    """`timm.create_model` with an error that names similar models; passes `img_size` only to models that take it."""
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name.split(".")[0], known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it knows {len(known)}, see `patchcast models`"
        raise ValueError(f"timm has no model {name!r}; {hint}")
    try:
        return timm.create_model(name, **timm_kwargs)
    except TypeError as error:
        if "img_size" not in str(error):
            unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
            if unknown is None:
                raise
            network = getattr(sys.modules[timm.models.model_entrypoint(name).__module__], unknown[1], None)
            known = [] if network is None else [*inspect.signature(network).parameters]
            near = difflib.get_close_matches(unknown[2], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"timm's {name} has no argument {unknown[2]!r}{hint}") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        changed = ", ".join(f"{key}={value}" for key, value in timm_kwargs.items() if key != "pretrained")
        mismatch = str(error).partition("size mismatch for ")[2].partition(":")[0]
        raise ValueError(
            f"the pretrained weights of {name} do not fit {changed}: timm does not resample its {mismatch}; "
            "leave that out, or start from random weights"
        ) from error
    return timm.create_model(name, **{key: value for key, value in timm_kwargs.items() if key != "img_size"})
