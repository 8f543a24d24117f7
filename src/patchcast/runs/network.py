"""`Network`: a run's network or a timm model, with its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm import is_model

from patchcast.backbones import Backbone, wrap
from patchcast.data import Augment, Evaluate
from patchcast.evaluation.protocol import OURS, UNTRAINED
from patchcast.folder_files import CONFIG
from patchcast.recipe import Device, Resolved
from patchcast.runs.run import Run, open_run
from patchcast.starts.opening import load_start, normalization

CROP_SCALE = (0.2, 1.0)
"""Scale of random crops for timm models: MAE's."""


@dataclass(frozen=True)
class Network:
    """A backbone and its preprocessing.

    Attributes:
        name: the run folder or the words of a start, as given.
        size: (height, width) of the input.
        mean, std: of each channel, white being 1.
        run: the run that trained it; None for other weights.
        architecture: timm's name of the model, if there is no run.
        model_args: the arguments that it was built with, likewise.
        is_trained: False for the weights before training.
        squash: whether images are resized whole, if there is no run.
    """

    name: str
    backbone: Backbone
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    run: Run | None = None
    is_trained: bool = True
    architecture: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    squash: bool = False

    @property
    def described(self) -> str:
        """Its name, and whether its weights are random."""
        return self.name if self.is_trained else f"{self.name}, untrained"

    @property
    def recipe(self) -> Resolved | None:
        """Of the run; None for a timm model."""
        return None if self.run is None else self.run.recipe

    @property
    def evaluate(self) -> Evaluate:
        """Deterministic preprocessing of the whole image."""
        if self.run is None:
            return Evaluate(self.size, self.mean, self.std, squash=self.squash)
        return self.run.evaluation

    @property
    def augment(self) -> Augment:
        """The augmentation of the run; for timm models, MAE's."""
        return Augment(self.size, CROP_SCALE, True, self.mean, self.std) if self.run is None else self.run.augmentation

    def held_out_share(self, data: str) -> float:
        """The share of a source that the network's run held out from training."""
        return self.recipe.held_out if self.recipe is not None and self.recipe.reads(data) else 0.0

    def before(self) -> Backbone:
        """The same network before training: the run's initial weights, or timm's random ones."""
        return self.run.untrained().backbone if self.run is not None else _random(self.architecture, self.model_args)

    def with_untrained(self) -> dict[str, Backbone]:
        """The network, and the same network before training; only the latter if it is not trained."""
        return {OURS: self.backbone, UNTRAINED: self.before()} if self.is_trained else {UNTRAINED: self.backbone}

    def own_file(self, name: str) -> Path | None:
        """A file in the folder of a trained run; None for a network without a folder."""
        return self.run.folder / name if self.run is not None and self.is_trained else None


def is_run(source: str | Path) -> bool:
    """Whether this is a run folder and not the name of a model."""
    return (Path(source) / CONFIG).exists()


def open_network(source: str | Path, *, untrained: bool = False, **model_args: Any) -> Network:
    """A run's network by its folder, or other weights by the words of `--start`.

    Args:
        untrained: use the weights before training.
        model_args: arguments of timm's create_model; not for runs.
    Raises:
        ValueError: if there is no such run or model, or its weights cannot be loaded.
    """
    if is_run(source):
        run = open_run(Path(source))
        recipe = run.recipe
        network = Network(str(source), run.pretrainer.backbone, recipe.image_size, recipe.mean, recipe.std, run)
        return replace(network, backbone=network.before(), is_trained=False) if untrained else network
    words = str(source)
    if untrained and is_model(words):
        backbone = _random(words, model_args)
        mean, std = normalization(None, backbone)
        return Network(words, backbone, backbone.image_size, mean, std, None, False, words, model_args)
    try:
        started = load_start(words, **model_args)
    except ValueError as problem:
        if is_model(words):
            raise ValueError(f"{problem}; --untrained goes without") from problem
        raise
    name, args, backbone = started.architecture, started.model_args, started.backbone
    network = Network(
        words, backbone, backbone.image_size, started.mean, started.std, None, True, name, args, started.squash
    )
    return replace(network, backbone=network.before(), is_trained=False) if untrained else network


def _random(architecture: str, model_args: Mapping[str, Any]) -> Backbone:
    torch.manual_seed(0)  # the same random weights at every call
    return wrap(architecture, **model_args)


def torch_device(device: Device) -> str:
    """The device that a command's option names.

    >>> torch_device("cpu")
    'cpu'

    Raises:
        ValueError: if a GPU is requested and there is none.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("--device gpu needs a GPU, but torch finds none; use --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
