"""What is looked at during a run, and where its numbers go: from a run to looks and loggers."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image

from patchcast.data import EvalSet
from patchcast.data.images import evenly_spaced
from patchcast.drawing.versions import progress_sheet
from patchcast.evaluation.labeled import Prepared, open_labeled, some_of
from patchcast.recipe import Resolved
from patchcast.runs.run import Run
from patchcast.runs.starting import is_started
from patchcast.training.log import Logger, TensorBoard, Wandb, check_installed
from patchcast.training.looks import FeatureWatch, Look, Pictures
from patchcast.training.probing import OnlineProbe

EVALUATED = 2000
"""Maximum number of images on which the loss is evaluated during a run."""
WATCHED = 256
"""Images whose features are looked at during a run."""
PICTURED = 8
"""Images in the pictures."""
PROBED, PROBED_A_CLASS = 2000, 10
"""Maximum number of images that probes are fitted on and judged on; for many classes, this many per class."""


PROBED_UNASKED = 500
"""The same for a run that starts from weights, whose data has labels, and for which no probe was asked for."""
NO_PROBE = "none"


def watches(run: Run) -> list[Look]:
    """What looks at the network at every evaluation.

    Raises:
        ValueError: if the recipe's `probe_data` is not there, or has no labels.
    """
    looks: list[Look] = []
    if len(run.source.train) >= 2:
        looks.append(_feature_watch(run))
    recipe = run.recipe
    if recipe.probe_data not in (None, NO_PROBE):
        looks.append(_probe(run, recipe.probe_data, PROBED))
    elif recipe.probe_data is None and is_started(recipe) and run.source.has_labels and not run.source.is_stream:
        looks.append(_probe(run, recipe.data, PROBED_UNASKED))
    if run.recipe.pictures and run.pretrainer.target.is_drawn:
        looks.append(_pictures(run))
    return looks


def make_loggers(recipe: Resolved) -> list[Logger]:
    """Where the recipe logs, apart from metrics.csv; nowhere for processes other than the first."""
    found: list[Logger] = []
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return found
    if recipe.tensorboard:
        found.append(TensorBoard(recipe.out))
    if recipe.wandb is not None:
        found.append(Wandb(recipe.wandb, recipe.out, recipe.to_dict()))
    return found


def check_loggers(recipe: Resolved) -> None:
    """Refuse loggers that are not installed, before anything is written."""
    if recipe.tensorboard:
        check_installed("tensorboard")
    if recipe.wandb is not None:
        check_installed("wandb")


def _feature_watch(run: Run) -> FeatureWatch:
    """On training images: every run has them, and a collapse shows on any."""
    images = EvalSet(run.source.train, run.evaluation)
    watched = torch.stack([images[place][0] for place in evenly_spaced(len(images), WATCHED)])
    can_collapse = not run.pretrainer.target.has_noise_floor
    return FeatureWatch(run.pretrainer.backbone, watched, warns=can_collapse)


def _probe(run: Run, data: str, most: int) -> OnlineProbe:
    recipe = run.recipe
    source = run.source if recipe.reads(data) else run.open_data(data)
    labeled = open_labeled(source, channels=recipe.channels)
    most = max(most, PROBED_A_CLASS * labeled.classes)
    fitted, judged = (Prepared(some_of(part, most), run.evaluation) for part in (labeled.train, labeled.test))
    return OnlineProbe(
        run.pretrainer.backbone,
        fitted,
        judged,
        batch_size=min(256, recipe.batch_size),
        workers=recipe.workers,
        readout=recipe.readout,
        measures_start=is_started(recipe),
    )


def _pictures(run: Run) -> Pictures:
    """Of held-out images where there are any."""
    images = run.source.shown.images
    shown = torch.stack([run.evaluation(images[place].image) for place in evenly_spaced(len(images), PICTURED)])
    pretrainer, normalization = run.pretrainer, (run.recipe.mean, run.recipe.std)

    def draw(device: torch.device) -> Image.Image:
        pretrainer.target.to(device)
        return progress_sheet(pretrainer, shown.to(device), normalization)

    return Pictures(draw, run.folder / "images")
