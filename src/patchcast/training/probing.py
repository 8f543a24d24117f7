"""Probes on labeled images during a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.evaluation.features import Features
from patchcast.evaluation.knn import knn_accuracy
from patchcast.evaluation.ridge import ridge_accuracy
from patchcast.training.log import Entries
from patchcast.training.looks import Look, embedding_on, finite

ONLINE_NEIGHBORS = 20


PROBE_NAMES = {"knn_accuracy": "nearest neighbors", "linear_accuracy": "linear"}
"""Columns of the log, and what they are called in sentences."""


class BelowStartWarning(UserWarning):
    """A run's features have become worse than those of the weights that it started from."""


def fallen(before: Mapping[str, float], after: Mapping[str, float], images: int) -> str:
    """Which accuracies have fallen by more than chance, as text; empty if none has.

    More than chance is twice the standard error of a difference between two sets of `images`: that on the same images
    is smaller, so that the warning is rather late than wrong.

    >>> fallen({"knn_accuracy": 0.8}, {"knn_accuracy": 0.7}, 1000)
    'nearest neighbors 70.0 % (80.0 % at the start)'
    >>> fallen({"knn_accuracy": 0.8}, {"knn_accuracy": 0.79}, 1000)
    ''
    """
    below = []
    for name in before.keys() & after.keys():
        mean = (before[name] + after[name]) / 2
        if before[name] - after[name] > 2 * (2 * mean * (1 - mean) / images) ** 0.5:
            below.append(f"{PROBE_NAMES[name]} {100 * after[name]:.1f} % ({100 * before[name]:.1f} % at the start)")
    return ", ".join(sorted(below))


@runtime_checkable
class LabeledExamples(Protocol):
    """Images as the network sees them, with their labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class OnlineProbe(Look):
    """Logs the accuracy of two probes at every evaluation: 20 nearest neighbors, and a linear classifier.

    The features are those of `patchcast probe`. The linear classifier is ridge regression in closed form,
    because it is fitted many times: on 4,000 features of width 768 it took 1.6 s, and logistic regression 6.8 s. Each
    rank computes the features of its share of the images, and the first rank fits the probes.

    For a run that starts from weights, the first measurement is before the first step. Later ones are compared with it,
    and a fall by more than chance is warned of once.

    Args:
        backbone: the backbone being trained.
        fitted: labeled images to fit the probes on, not augmented.
        judged: labeled images to evaluate the probes on.
        batch_size: images at a time on each rank.
        workers: worker processes that read the images.
        readout: how the units of an image become its feature.
        measures_start: whether to measure before the first step.
    """

    def __init__(
        self,
        backbone: Backbone,
        fitted: LabeledExamples,
        judged: LabeledExamples,
        *,
        batch_size: int = 256,
        workers: int = 0,
        readout: Readout = DEFAULT_READOUT,
        measures_start: bool = False,
    ) -> None:
        self.backbone, self.fitted, self.judged = backbone, fitted, judged
        self.batch_size, self.workers, self.readout = batch_size, workers, readout
        self.measures_start, self.warned = measures_start, False
        self.begun: dict[str, float] = {}

    def start(self, device: torch.device) -> Entries:
        if not self.measures_start:
            return {}
        self.begun = self.measure(device)
        return self.begun

    def look(self, step: int, device: torch.device) -> Entries:
        found = self.measure(device)
        below = fallen(self.begun, found, len(self.judged))
        if below and not self.warned:
            self.warned = True
            warnings.warn(
                f"step {step}: below the weights that the run started from: {below}. Their knowledge is being lost: "
                "try a smaller lr or layer_decay, freeze_blocks, or more images",
                BelowStartWarning,
                stacklevel=2,
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.begun, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun, self.warned = state.get("start", {}), state.get("warned", False)

    def measure(self, device: torch.device) -> dict[str, float]:
        """Both accuracies, in the first process; nothing in the others."""
        fitted, judged = self.features(self.fitted, device), self.features(self.judged, device)
        if dist.is_initialized() and dist.get_rank():
            return {}
        neighbors = min(ONLINE_NEIGHBORS, len(fitted))
        return {
            "knn_accuracy": knn_accuracy(fitted, judged, k=(neighbors,))[neighbors],
            "linear_accuracy": ridge_accuracy(fitted, judged),
        }

    def features(self, images: LabeledExamples, device: torch.device) -> Features:
        """The features of all images, on every rank; each rank computes its own share."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        total = len(images)
        mine = torch.arange(rank, total, world)
        loader: DataLoader[Any] = DataLoader(
            Subset(images, mine.tolist()),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            num_workers=self.workers,
            generator=torch.Generator(),  # the loader draws a seed, which must not come from the run's generator
        )
        features = lambda x: embedding_on(device, self.backbone, x, self.readout).float()  # noqa: E731
        rows = [(features(x), labels) for x, labels in loader]
        if not rows:  # more ranks than images: an image of another rank tells the width of the features
            rows = [(features(images[0][0][None])[:0], torch.zeros(0, dtype=torch.long))]
        x, labels = torch.cat([x for x, _ in rows]), torch.cat([labels for _, labels in rows])
        return Features(finite(_share(x, mine, total)), _share(labels.to(device), mine, total))


def _share(rows: Float[Tensor, "M D"] | Int[Tensor, " M"], places: Int[Tensor, " M"], total: int) -> Tensor:
    """The rows of all ranks, each in its place; a sum, so that ranks may have different numbers of them."""
    if not dist.is_initialized():
        return rows
    everywhere = rows.new_zeros(total, *rows.shape[1:])
    everywhere[places.to(rows.device)] = rows
    dist.all_reduce(everywhere)
    return everywhere
