"""The images of sources that are nearest to one image, by the cosine of their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchcast.backbones.capabilities import Readout
from patchcast.data import EvalLoader, EvalSet, Images
from patchcast.data.transforms import ImagePixels
from patchcast.evaluation.features import extract
from patchcast.modes import evaluating
from patchcast.runs.network import Network
from patchcast.stages import stage

BATCH = 256


@dataclass(frozen=True)
class Match:
    """An image that was found.

    Attributes:
        label: the name of its class; empty if it has none.
        similarity: the cosine of its feature and that of the image that is searched.
    """

    path: str
    label: str
    similarity: float
    image: Tensor


def search_images(
    network: Network,
    picture: ImagePixels,
    sources: Sequence[Images],
    *,
    count: int,
    readout: Readout,
    device: str,
    cache: Path | None = None,
) -> tuple[list[Match], int]:
    """The `count` nearest images, the nearest first, and how many images were read.

    Args:
        picture: the image that is searched, as it is read.
        readout: how units become one feature.
        cache: a folder for features; None to compute them again.
    """
    backbone = network.backbone
    features, paths, places = [], [], []
    for number, images in enumerate(sources):
        with stage(f"Features of {images.name} ({images.split})"):
            batches = EvalLoader(EvalSet(images, network.evaluate), BATCH)
            features.append(extract(backbone, batches, device=device, readout=readout, cache=cache).x)
        bad = {image.index for image in images.unreadable}
        for place, position in enumerate(images.positions.tolist()):
            if position not in bad:
                paths.append(images.store.path(position))
                places.append((number, place))
    with evaluating(backbone.to(device)):
        wanted = backbone.pool(network.evaluate(picture)[None].to(device), readout).float().cpu()
    similarity = F.cosine_similarity(torch.cat(features), wanted)
    values, nearest = similarity.topk(min(count, len(similarity)))
    matches = []
    for index, value in zip(nearest.tolist(), values.tolist(), strict=True):
        number, place = places[index]
        image, label = sources[number][place]
        names = sources[number].class_names
        matches.append(Match(paths[index], "" if label < 0 else names[label] if names else str(label), value, image))
    return matches, len(paths)
