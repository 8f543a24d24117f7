"""What looks at a network during its training, and changes nothing: features, and pictures of its predictions."""

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
from patchcast.collapse import CollapseWarning, Diversity, diversity
from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer, embedding_of
from patchcast.training.engine import gathered
from patchcast.training.guard import NotFinite
from patchcast.training.log import Entries


class Look:
    """Looks at the network at every evaluation and at the end; every rank takes part, inside `looking`."""

    def start(self, device: torch.device) -> Entries:
        """Called once, at the beginning of a run; what it finds is row 0 of the log."""
        return {}

    def look(self, step: int, device: torch.device) -> Entries:
        """What is found, by the names of the log's columns.

        Raises:
            NotFinite: if features are NaN or infinite.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a run that resumes must know."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@contextmanager
def looking(pretrainer: Pretrainer) -> Iterator[None]:
    """`evaluating`, with whole weights and no compiling inside; random states are as they were afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        evaluating(pretrainer),
        gathered(pretrainer),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def finite(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The features as they are.

    Raises:
        NotFinite: if one is NaN or infinite.
    """
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise NotFinite(f"the features of {bad} of {len(features)} images are NaN or infinite")
    return features


class FeatureWatch(Look):
    """Logs variance and rank of the pooled features (`patchcast.collapse`), and warns once if they collapse.

    A collapse is judged against the start of the run: the images may be all alike to an untrained network too. That
    start is in the checkpoint, so that a run that resumes is judged by its own beginning.

    Args:
        backbone: the one that is trained.
        images: some hundred, the same each time, as in evaluation.
        warns: whether the target is learnt along, so that a collapse would make the loss small.
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

    def _diversity(self, device: torch.device) -> Diversity:
        return diversity(finite(embedding_of(self.backbone, self.images.to(device))))


class Pictures(Look):
    """Draws the same images at every evaluation: into a folder, as `step=N.png`, and for loggers that show pictures.

    Args:
        draw: the picture by the network as it is, on the device where it lies.
        folder: where they go.
    """

    def __init__(self, draw: Callable[[torch.device], Image.Image], folder: Path) -> None:
        self.draw, self.folder = draw, folder

    def look(self, step: int, device: torch.device) -> Entries:
        picture = self.draw(device)
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.folder.mkdir(exist_ok=True)
            picture.save(self.folder / f"step={step}.png")
        return {"pictures": picture}
