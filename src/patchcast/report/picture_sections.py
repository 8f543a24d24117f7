"""The sections of a run's page with pictures: predictions, drawings and feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from patchcast.backbones import Backbone
from patchcast.data import denormalize
from patchcast.data.images import evenly_spaced
from patchcast.drawing.figures import Version
from patchcast.drawing.versions import BLIND_ROW, completed, completes_pixels, draws_codes, samples, versions
from patchcast.evaluation.maps import pca_maps
from patchcast.modes import evaluating
from patchcast.pretrainer import Pretrainer
from patchcast.report.page import Section, subheading
from patchcast.report.pictures import image_row, strips
from patchcast.report.run_numbers import RunNumbers
from patchcast.views import Attend

PICTURES, SAMPLES = 6, 24


def picture_sections(found: RunNumbers, data: str) -> list[Section]:
    """Sections with predictions, drawings and feature maps; a sentence instead if the images cannot be read."""
    drawn = _samples(found.pretrainer) if draws_codes(found.pretrainer) else []
    try:
        part = found.run.shown(data)
        places = evenly_spaced(len(part.images), PICTURES)
        images = torch.stack([found.run.evaluation(part.images[place].image) for place in places])
    except (ValueError, OSError) as problem:
        return [*drawn, Section("What it predicts", f"The images cannot be shown: {problem}", [])]
    is_held_out = found.recipe.reads(data) and found.run.source.held_out is not None
    phrase = f"Not trained on: {part.phrase}" if is_held_out else part.phrase
    return [*_predictions(found, images, phrase), *drawn, *_maps(found, images)]


def _predictions(found: RunNumbers, images: Tensor, phrase: str) -> list[Section]:
    pretrainer, target = found.pretrainer, found.pretrainer.target
    if not target.is_drawn:
        return []
    normalization = (found.recipe.mean, found.recipe.std)
    body = [strips(versions(pretrainer, images, normalization))]
    which = f"{phrase[0].upper()}{phrase[1:]}"
    if draws_codes(pretrainer):
        note = f"{which}. The upper half is given; the lower half was drawn twice, in the colors of the palette."
        return [Section("Completions", note, body)]
    source = f" {target.from_image[0].upper()}{target.from_image[1:]}; {BLIND_ROW}." if target.from_image else ""
    note = f"{which}: what was seen of each, and what was predicted in place of the rest.{source}"
    if isinstance(pretrainer.view, Attend):
        note = f"{which}: their given units, and every other unit as predicted from all units before it.{source}"
    if completes_pixels(pretrainer):
        body += [subheading("Completed from the first half"), strips(completed(pretrainer, images, normalization))]
    return [Section("What it predicts", note, body)]


def _samples(pretrainer: Pretrainer) -> list[Section]:
    note = f"The first {SAMPLES} new images that it draws, without selection."
    return [Section("What it draws", note, [image_row(list(samples(pretrainer, SAMPLES)), "sample")])]


def _maps(found: RunNumbers, images: Tensor) -> list[Section]:
    shown = denormalize(images, found.recipe.mean, found.recipe.std)
    try:
        maps = {
            "image": Version(shown),
            "this run": Version(_map(found.pretrainer.backbone, images)),
            "untrained": Version(_map(found.run.untrained().backbone, images)),
        }
    except ValueError:
        return []  # too few units or channels for three components
    note = (
        "The first three principal components of the features of all units shown, as red, green and blue: units of one "
        "color have similar features. The colors themselves mean nothing."
    )
    return [Section("Feature maps", note, [strips(maps)])]


def _map(backbone: Backbone, images: Tensor) -> Tensor:
    with evaluating(backbone):
        units = backbone.units(images)
    return pca_maps(units.clone(), backbone.grid(images))
