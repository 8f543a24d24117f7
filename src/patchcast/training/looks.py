"""Observers of a network during training, which change nothing: feature statistics and pictures of predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.capabilities import Readout
from patchcast.collapse import CollapseWarning, Diversity, diversity
from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer, embedding_of
from patchcast.tokenizers.base import Tokenizer
from patchcast.training.guard import NotFinite
from patchcast.training.log import Entries
from patchcast.training.sharding import gathered


class Look:
    """An observer, called at every evaluation and at the end of a run, on every rank, inside `looking`."""

    def start(self, device: torch.device) -> Entries:
        """Called once, at the beginning of a run; what it finds is row 0 of the log."""
        return {}

    def look(self, step: int, device: torch.device) -> Entries:
        """Numbers and pictures, by the column names of the log.

        Raises:
            NotFinite: if features are NaN or infinite.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@contextmanager
def looking(pretrainer: Pretrainer) -> Iterator[None]:
    """`evaluating`, with gathered weights and without compiling; random states are restored afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        evaluating(pretrainer),
        gathered(pretrainer),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def finite(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The features unchanged.

    Raises:
        NotFinite: if one is NaN or infinite.
    """
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise NotFinite(f"the features of {bad} of {len(features)} images are NaN or infinite")
    return features


def embedding_on(
    device: torch.device, backbone: Backbone, images: Real[Tensor, "N C H W"], readout: Readout
) -> Float[Tensor, "N D"]:
    """Features on the device of the network that is trained.

    Training on codes moves the network there, and not the tokenizer of its images.
    """
    for module in backbone.modules():
        if isinstance(module, Tokenizer):
            module.to(device)
    return embedding_of(backbone, images.to(device), readout)


class FeatureWatch(Look):
    """Logs variance and rank of the mean of the units (`patchcast.collapse`), and warns once if they collapse.

    Collapse is measured relative to the start of the run, because an untrained network may also give similar features
    to all images. The values at the start are saved in the checkpoint.

    Args:
        backbone: the backbone being trained.
        images: a few hundred, preprocessed as in evaluation; the same at every call.
        warns: True if the target is learned too, so that a collapse would make the loss small.
    """

    def __init__(self, backbone: Backbone, images: Real[Tensor, "N C H W"], *, warns: bool = True) -> None:
        self.backbone, self.images, self.warns = backbone, images, warns
        self.begun: Diversity | None = None
        self.warned = False

    def start(self, device: torch.device) -> Entries:
        self.begun = self._diversity(device)
        return {}

    def look(self, step: int, device: torch.device) -> Entries:
        found = self._diversity(device)
        if self.warns and not self.warned and self.begun is not None and found.collapsed_since(self.begun):
            self.warned = True
            warnings.warn(f"step {step}: {found.advice}", CollapseWarning, stacklevel=2)
        return {"feature_variance": found.variance, "feature_rank": found.effective_rank}

    def state_dict(self) -> dict[str, Any]:
        begun = None if self.begun is None else [self.begun.variance, self.begun.effective_rank]
        return {"start": begun, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = None if state["start"] is None else Diversity(*state["start"])
        self.warned = state["warned"]

    def features(self, device: torch.device) -> Float[Tensor, "N D"]:
        """The features that are looked at, one row per image."""
        # The thresholds of a collapse are for the mean of the units, and a run that resumes has its start by it.
        return embedding_on(device, self.backbone, self.images, "mean")

    def _diversity(self, device: torch.device) -> Diversity:
        return diversity(finite(self.features(device)))


class Pictures(Look):
    """Draws the same images at every evaluation: saved as `step=N.png`, and passed to loggers that show pictures.

    Args:
        draw: makes the picture with the current network, on the given device.
        folder: where the pictures are saved.
    """

    def __init__(self, draw: Callable[[torch.device], Image.Image], folder: Path) -> None:
        self.draw, self.folder = draw, folder

    def look(self, step: int, device: torch.device) -> Entries:
        picture = self.draw(device)
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.folder.mkdir(exist_ok=True)
            picture.save(self.folder / f"step={step}.png")
        return {"pictures": picture}
