"""Write images as a grid in a PNG, and images drawn code by code as an animated GIF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchcast.files import write_whole
from patchcast.geometry import Grid

GAP, GRAY = 1, 128
LETTERS = 11
"""Size of titles and names, in pixels."""


@runtime_checkable
class CodeDecoder(Protocol):
    """Turns codes into images: a palette, or your own learned decoder."""

    def decode(self, ids: Int[Tensor, "B N"], grid: Grid) -> UInt8[Tensor, "B C H W"]: ...


def save_grid(
    images: UInt8[Tensor, "B C H W"],
    path: str | Path,
    *,
    columns: int | None = None,
    scale: int | None = None,
    titles: Sequence[str] = (),
) -> None:
    """Write images side by side, row by row, as PNG.

    Args:
        columns: images per row; None for an approximately square grid, with full rows where that is possible.
        scale: factor by which images are enlarged; None for about 64 pixels per side.
        titles: of the columns, written above them.
    """
    drawn = with_labels(sheet(images, columns=columns, scale=scale), titles=titles)
    write_whole(path, drawn.save)


def save_drawing(
    ids: Int[Tensor, "B N"],
    tokenizer: CodeDecoder,
    grid: Grid,
    path: str | Path,
    *,
    given: int = 0,
    frames: int = 48,
    milliseconds: int = 60,
    columns: int | None = None,
    scale: int | None = None,
) -> None:
    """Write an animated GIF that shows images drawn code by code in raster order; the rest is gray.

    Args:
        given: number of given codes, which the first frame shows already.
        frames: approximate number of frames; the last one, the finished images, is shown for two seconds.
        milliseconds: per frame.
        columns, scale: as in `save_grid`.
    """
    images = tokenizer.decode(ids, grid)
    units = ids.shape[1]
    step = max(1, math.ceil((units - given) / frames))
    shown = [*range(given, units, step), units]
    size = (images.shape[-2], images.shape[-1])
    pictures = []
    for count in shown:
        is_drawn = (torch.arange(units) < count).view(1, 1, *grid).float()
        is_drawn = torch.nn.functional.interpolate(is_drawn, size=size, mode="nearest").bool()
        shown_now = torch.where(is_drawn.to(images.device), images, GRAY)
        pictures.append(sheet(shown_now, columns=columns, scale=scale))
    durations = [milliseconds] * (len(pictures) - 1) + [2000]
    first, *others = pictures
    write_whole(path, partial(first.save, save_all=True, append_images=others, duration=durations, loop=0))


def sheet(images: UInt8[Tensor, "B C H W"], *, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Images side by side, row by row; arguments as in `save_grid`.

    >>> sheet(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), columns=3).size
    (194, 129)
    """
    count, channels, height, width = images.shape
    columns = min(count, columns or _columns(count, height / width))
    rows = math.ceil(count / columns)
    scale = scale or max(1, round(64 / max(height, width)))
    down, right = height * scale + GAP, width * scale + GAP
    sheet = torch.full((rows * down - GAP, columns * right - GAP, channels), 255, dtype=torch.uint8)
    enlarged = images.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3).permute(0, 2, 3, 1)
    for place, image in enumerate(enlarged):
        row, column = divmod(place, columns)
        sheet[row * down : row * down + height * scale, column * right : column * right + width * scale] = image
    return Image.fromarray(sheet.squeeze(-1).numpy())


def with_labels(drawn: Image.Image, *, titles: Sequence[str] = (), names: Sequence[str] = ()) -> Image.Image:
    """A sheet with titles above its columns and names to the left of its rows, black on white.

    >>> with_labels(Image.new("L", (129, 129)), titles=["seen", "drawn"], names=["first", "second"]).size
    (177, 147)
    """
    if not titles and not names:
        return drawn
    font, left = ImageFont.load_default(size=LETTERS), label_width(names)
    top = 18 if titles else 0
    whole = Image.new("RGB", (drawn.width + left, drawn.height + top), "white")
    whole.paste(drawn.convert("RGB"), (left, top))
    pen = ImageDraw.Draw(whole)
    for place, title in enumerate(titles):
        middle = left + (place + 0.5) * drawn.width / len(titles)
        pen.text((middle, top / 2), title, fill="black", font=font, anchor="mm")
    for place, name in enumerate(names):
        middle = top + (place + 0.5) * drawn.height / len(names)
        pen.text((4, middle), name, fill="black", font=font, anchor="lm")
    return whole


def label_width(names: Sequence[str]) -> int:
    """Pixels to the left of a sheet's rows that `with_labels` needs for their names.

    >>> label_width([])
    0
    """
    font = ImageFont.load_default(size=LETTERS)
    return math.ceil(max((font.getlength(name) for name in names), default=-8)) + 8


def _columns(count: int, ratio: float) -> int:
    """Images per row of an approximately square grid; rows are full where a grid with full rows is not much longer.

    >>> _columns(24, 1.0), _columns(16, 1.0), _columns(23, 1.0)
    (6, 4, 5)
    """
    wanted = math.sqrt(count * ratio)
    full = min(
        (n for n in range(1, count + 1) if count % n == 0), key=lambda n: (round(abs(math.log(n / wanted)), 6), -n)
    )
    return full if 1 / 1.5 < full / wanted < 1.5 else math.ceil(wanted)
