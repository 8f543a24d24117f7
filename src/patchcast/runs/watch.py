"""What is watched during a run, and where it is told: from a recipe to callbacks and loggers."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch import Tensor

from patchcast.commands.show import versions
from patchcast.data import EvalSet, Images, open_images
from patchcast.data.images import evenly_spaced
from patchcast.data.source import pick_split
from patchcast.drawing.generation import sample
from patchcast.drawing.sheets import GREY, sheet
from patchcast.evaluation.labeled import Prepared, labels_of, open_labeled, some_of
from patchcast.methods import METHODS
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved
from patchcast.runs.build import evaluation
from patchcast.training import loggers
from patchcast.training.picturing import Pictures
from patchcast.training.probing import OnlineProbe
from patchcast.training.watch import FeatureWatch

WATCHED = 256
"""Images whose features are looked at during a run."""
PICTURED = 8
"""Images that are drawn."""
PROBED, PROBED_A_CLASS = 2000, 10
"""Most images that probes are fitted on, and judged by; more if there are so many classes."""


def watches(recipe: Resolved, pretrainer: Pretrainer, images: Images) -> list[Callback]:
    """What looks at the network at every evaluation.

    Raises:
        ValueError: if the recipe's `probe_data` is not there, or has no labels.
    """
    found: list[Callback] = []
    if len(images) >= 2:
        found.append(_feature_watch(recipe, pretrainer, images))
    if recipe.probe_data is not None:
        found.append(_probe(recipe, recipe.probe_data, pretrainer))
    if recipe.pictures and pretrainer.target.is_drawn:
        found.append(_pictures(recipe, pretrainer, images))
    return found


def make_loggers(recipe: Resolved) -> list[Logger]:
    """Where the recipe wants its numbers beside metrics.csv."""
    found = []
    if recipe.tensorboard:
        found.append(loggers.tensorboard(recipe.out))
    if recipe.wandb is not None:
        found.append(loggers.wandb(recipe.wandb, recipe.out, recipe.to_dict()))
    return found


def check_loggers(recipe: Resolved) -> None:
    """Refuse loggers that are not installed, before anything is written."""
    if recipe.tensorboard:
        loggers.check_installed("tensorboard")
    if recipe.wandb is not None:
        loggers.check_installed("wandb")


def _feature_watch(recipe: Resolved, pretrainer: Pretrainer, images: Images) -> FeatureWatch:
    """On images of the training set: they are there in every run, and a collapse shows on any."""
    seen = EvalSet(images, evaluation(recipe))
    watched = torch.stack([seen[index][0] for index in evenly_spaced(len(images), WATCHED)])
    can_collapse = not pretrainer.target.has_noise_floor
    return FeatureWatch(pretrainer.backbone, watched, every=recipe.eval_every, warns=can_collapse)


def _probe(recipe: Resolved, data: str, pretrainer: Pretrainer) -> OnlineProbe:
    labelled = open_labeled(data, channels=recipe.channels)
    without = sum(int((labels_of(part) < 0).sum()) for part in (labelled.train, labelled.test))
    if without:
        raise ValueError(f"{without} images of {data} have no label, which a probe needs; give --probe_data others")
    most = max(PROBED, PROBED_A_CLASS * labelled.classes)
    fitted, judged = (Prepared(some_of(part, most), evaluation(recipe)) for part in (labelled.train, labelled.test))
    return OnlineProbe(
        pretrainer.backbone,
        fitted,
        judged,
        every=recipe.eval_every,
        batch_size=min(256, recipe.batch_size),
        workers=recipe.workers,
    )


def _pictures(recipe: Resolved, pretrainer: Pretrainer, images: Images) -> Pictures:
    """Held-out images where there are any."""
    split = pick_split(images.splits, prefer="validation") or images.split
    source = EvalSet(open_images(recipe.data, split=split, channels=recipe.channels), evaluation(recipe))
    shown = torch.stack([source[index][0] for index in range(min(PICTURED, len(source)))])

    def draw(device: torch.device) -> Image.Image:
        pretrainer.target.to(device)
        rows = [_on_grey(*version) for version in versions(recipe, pretrainer, shown.to(device)).values()]
        if METHODS[recipe.method].causal:
            rows.append(_samples(pretrainer, len(shown)))
        return sheet(torch.cat(rows), columns=len(shown))

    return Pictures(draw, recipe.out / "images", every=recipe.eval_every)


def _on_grey(images: Tensor, hidden: Tensor | None) -> Tensor:
    """As a PNG can hold it: the first three channels, or one; grey where there is nothing to show."""
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    return shown if hidden is None else shown.masked_fill(hidden[:, None], GREY)


def _samples(pretrainer: Pretrainer, count: int) -> Tensor:
    """Images drawn from nothing."""
    tokenizer: Any = pretrainer.target.tokenizer
    ids = sample(pretrainer, count, generator=torch.Generator().manual_seed(0))
    network: Any = pretrainer.backbone.model
    return tokenizer.decode(ids, network.grid).cpu()
