"""Inline PNG images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from patchcast.drawing.figures import Version
from patchcast.report.page import Html, part

LARGE = 128
"""Pixels per side from which images are interpolated when enlarged."""


def data_uri(image: UInt8[Tensor, "C H W"], hidden: Bool[Tensor, "H W"] | None = None) -> str:
    """A PNG as a data URI: transparent where `hidden` is True, with the first three channels at most.

    >>> import torch
    >>> data_uri(torch.zeros(1, 2, 2, dtype=torch.uint8))[:22]
    'data:image/png;base64,'
    """
    color = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    pixels = color.permute(1, 2, 0).numpy()
    if hidden is not None:
        opaque = np.where(hidden.numpy(), 0, 255).astype(np.uint8)
        pixels = np.concatenate([np.where(opaque[..., None] > 0, pixels, 0), opaque[..., None]], axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def strips(versions: Mapping[str, Version]) -> Html:
    """For each image, its versions next to each other, with their names below.

    >>> import torch
    >>> gray = Version(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    >>> strips({"image": gray, "predicted": gray}).count("<img")
    4
    """
    count = len(next(iter(versions.values())).images)
    cards = [[_figure(name, version, place) for name, version in versions.items()] for place in range(count)]
    return part("strips", cards=cards, versions=len(versions), width=max(300, 100 * len(versions)))


def _figure(name: str, version: Version, place: int) -> dict[str, Any]:
    image, hidden = version.images[place], None if version.hidden is None else version.hidden[place]
    return {"name": name, "source": data_uri(image, hidden), "is_smooth": max(image.shape[-2:]) >= LARGE}


def image_row(images: Sequence[UInt8[Tensor, "C H W"]], name: str) -> Html:
    """Images next to each other, without names."""
    return part("image_row", sources=[data_uri(image) for image in images], name=name)


def embedded(file: Path, name: str) -> Html:
    """A PNG file inside the page, at most as wide as it is."""
    source = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    return part("embedded", source=source, name=name)
