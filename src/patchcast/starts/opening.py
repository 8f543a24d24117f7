"""Build a backbone with the weights that a start's words name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.aim_network import ARCHITECTURE
from patchcast.starts.fitting import StartReport, fit, models_for
from patchcast.starts.reading import read_start
from patchcast.starts.start import Start


@dataclass(frozen=True)
class Started:
    """A backbone that starts from weights.

    Attributes:
        backbone: the backbone, with the weights loaded.
        fitted: report of what was loaded; `print` shows it as a table.
        architecture: timm's name of the model.
        model_args: arguments that it was built with.
        mean, std: of each channel of its images, white being 1.
        squash: whether images are resized whole to the model's size, and not cut.
    """

    backbone: Backbone
    fitted: StartReport
    architecture: str
    model_args: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False


def load_start(
    words: str, model: str | None = None, *, bands: Sequence[int] | None = None, **model_args: Any
) -> Started:
    """Build a backbone with the weights that `words` name; the same words as for `--start`.

    >>> import tempfile, timm, torch
    >>> file = f"{tempfile.mkdtemp()}/weights.pth"
    >>> torch.save({"model": timm.create_model("test_vit").state_dict()}, file)
    >>> started = load_start(file, "test_vit", img_size=64)
    >>> started.fitted.resampled
    {'pos_embed': ([1, 101, 64], [1, 17, 64])}

    Args:
        words: a timm model with or without a tag, `hf-hub:NAME`, `local-dir:FOLDER`, a run folder, a folder of timm or
            transformers, or a file of weights.
        model: timm's name of the model. Default: the one that the files name, or the only one that they fit.
        bands: which of the images' channels, counted from 0, are red, green and blue.
        model_args: arguments of `timm.create_model`; they take precedence over those that the files name.
    Raises:
        ValueError: if there are no such weights, the model is not known, or they do not fit it.
    """
    start = read_start(words)
    architecture = model or model_of(start)
    args = {**(start.model_args if model in (None, start.architecture) else {}), **model_args}
    backbone = wrap(architecture, **args)
    fitted = fit(backbone, start, bands=bands)
    if start.eps is not None:
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = start.eps
    mean, std = normalization(start, backbone)
    return Started(backbone, fitted, architecture, args, mean, std, start.squash)


def normalization(start: Start | None, backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: the start's, or else those of timm's configuration of the model.

    For gray images they are averaged over the three channels; a fourth channel gets mean 0.5.
    """
    config: Any = getattr(backbone.model, "pretrained_cfg", None) or {}
    mean = (start and start.mean) or tuple(config.get("mean", IMAGENET_DEFAULT_MEAN))
    std = (start and start.std) or tuple(config.get("std", IMAGENET_DEFAULT_STD))
    return for_channels(mean, backbone.channels, rest=0.5), for_channels(std, backbone.channels, rest=0.5)


def for_channels(values: Sequence[float], channels: int, *, rest: float) -> tuple[float, ...]:
    """Convert values for three channels to another number of channels.

    >>> for_channels((0.25, 0.5, 0.75), 1, rest=0.5), for_channels((0.25, 0.5, 0.75), 4, rest=0.5)
    ((0.5,), (0.25, 0.5, 0.75, 0.5))
    """
    if len(values) in (1, channels):
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return (*tuple(values)[:channels], *[rest] * (channels - len(values)))


def model_of(start: Start) -> str:
    """timm's name of the model of a start: the one that its files name, or the only one that they fit.

    Raises:
        ValueError: if nothing in the files names it.
    """
    if start.architecture:
        return start.architecture
    names = models_for(start)
    if not names:
        hint = f" (AIM's are {ARCHITECTURE} with patchcast.aim_args)" if "AIM" in start.format else ""
        raise ValueError(
            f"nothing in {start.words} ({start.format}) names its model{hint}: give it as MODEL={start.words}"
        )
    return names[0]
