"""From the bytes of an image file to uint8 pixels, whatever the file calls its colours."""

from __future__ import annotations

from io import BufferedReader, BytesIO
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

ImageFile = BytesIO | BufferedReader
"""An encoded image, opened: in memory or on disk."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
GREYS = ("L", "1", "LA", "La", *SIXTEEN_BITS)
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)


class UnreadableImageError(ValueError):
    """A file that is no image, or a broken one; the message is the reason in a few words."""


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded: (height, width) upright, and its kind of colours."""

    size: tuple[int, int]
    is_grey: bool
    has_alpha: bool


def read_header(file: ImageFile) -> Header:
    """Size and colours of an image, from its first bytes only (20 to 45 microseconds).

    Empty files, text with an image's name and decompression bombs are found out here; truncated files are not.

    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            # Asked without need, Pillow would decode a whole PNG to look for EXIF behind its pixels; and TIFF, which
            # has none in `info`, it turns upright by itself.
            if "exif" in image.info and image.getexif().get(ORIENTATION) in SIDEWAYS:
                width, height = height, width
            return Header((height, width), image.mode in GREYS, image.has_transparency_data)
    except Exception as problem:  # a hostile file can raise nearly anything: struct.error, SyntaxError, KeyError ...
        raise UnreadableImageError(_reason(problem, file)) from problem


def decode(file: ImageFile, channels: int) -> UInt8[Tensor, "C H W"]:
    """The first frame of an image file as `channels` channels, upright.

    - EXIF orientation is applied.
    - 16-bit greys are scaled by 255 / 65535: a fixed scale, so that brightness means the same in every image.
    - Palette, CMYK, YCbCr and LAB become RGB; colours become grey by ITU-R 601 where one channel is asked for.
    - Transparency is laid onto white, unless 4 channels are asked for.

    The tensor has channels last in memory, as decoders write it: resizing is faster so.

    Args:
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        with Image.open(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(_convert(image, channels))
    except Exception as problem:
        raise UnreadableImageError(_reason(problem, file)) from problem
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def is_transparent(file: ImageFile) -> bool:
    """Whether any pixel lets the background through: many files carry an alpha channel that says nothing."""
    try:
        with Image.open(file) as image:
            return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
    except Exception as problem:
        raise UnreadableImageError(_reason(problem, file)) from problem


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integers from {values.min()} to {values.max()} are no 16-bit grey")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white")
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert(MODES[channels])


def _reason(problem: Exception, file: ImageFile) -> str:
    if isinstance(problem, Image.UnidentifiedImageError):
        file.seek(0)
        return "no known image format" if file.read(1) else "empty file"
    if isinstance(problem, Image.DecompressionBombError):
        return "decompression bomb: " + str(problem).partition(",")[0].removeprefix("Image size ").strip()
    return str(problem).partition("\n")[0] or type(problem).__name__
