"""Decode image files of any color mode."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from patchcast.data.arrays import DEEP_MODES, NPY, ArrayFile, decode_deep, from_pillow, read_npy
from patchcast.data.formats import open_image
from patchcast.data.tiff import STARTS, find_tiff

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will give these up; Pillow gives the same pixels
    decode_jpeg = None

ImageFile = BytesIO | BufferedReader
"""An encoded image, opened: in memory or on disk."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GRAYS = ("L", "1", "LA", "La")
JPEG, START_OF_FRAME, START_OF_SCAN, ADOBE = b"\xff\xd8\xff", (0xC0, 0xC1, 0xC2), 0xDA, 0xEE
END_OF_IMAGE = b"\xff\xd9"
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
XMP = ("xmp", "XML:com.adobe.xmp")
"""Keys of Pillow's `info` under which a file's XMP is, which may tell the orientation as EXIF does."""


class UnreadableImageError(ValueError):
    """A file that is not an image, or is broken; the message is a short reason."""


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded: (height, width) upright, and its kind of colors.

    `channels` is that of files whose pixels become float32: those of more than 8 bits, or of channels that are no
    colors. It is None for 8-bit photographs.
    """

    size: tuple[int, int]
    is_gray: bool
    has_alpha: bool
    channels: int | None = None


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Allow images of up to `max_pixels` pixels in the block; None for Pillow's limit of 178,956,970."""
    if max_pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow warns from here on, and refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_header(file: ImageFile) -> Header:
    """Size and colors of an image, from its first bytes only (20 to 45 microseconds).

    Detects empty files, text files with image names, and decompression bombs, but not truncated files.

    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        deep = _find_deep(file)
        if deep is not None:
            return _header_of(deep)
        with open_image(file) as image:
            _warn_of_lost_bits(image)
            width, height = image.size[::-1] if _is_sideways(image) else image.size
            if image.mode in DEEP_MODES:
                return _header_of(from_pillow(image))._replace(size=(height, width))
            return Header((height, width), image.mode in GRAYS, image.has_transparency_data)
    except Exception as problem:  # a hostile file can raise nearly anything: struct.error, SyntaxError, KeyError ...
        raise UnreadableImageError(_reason(problem, file)) from problem


def _warn_of_lost_bits(image: Image.Image) -> None:
    """Pillow reads colors of 16 bits in PNG files as 8 bits."""
    tile = image.tile if image.format == "PNG" else []  # type: ignore[attr-defined]
    raw = tile[0][3] if tile else ""
    if "16B" in str(raw) and image.mode not in DEEP_MODES:
        warnings.warn(
            "PNG files of 16-bit colors are read with 8 bits per color; TIFF and .npy files keep all bits", stacklevel=2
        )


def _is_sideways(image: Image.Image) -> bool:
    """Whether EXIF or XMP say that height and width are exchanged in an image that is not decoded yet."""
    if image.format == "TIFF" and ORIENTATION in image.tag_v2:  # type: ignore[attr-defined]
        return False  # Pillow has turned its size already
    # Asked without need, Pillow would decode a whole PNG to look for EXIF after its pixels.
    is_told = "exif" in image.info or any("tiff:Orientation" in str(image.info.get(name, "")) for name in XMP)
    return is_told and image.getexif().get(ORIENTATION) in SIDEWAYS


def _find_deep(file: ImageFile) -> ArrayFile | None:
    """What a .npy file, or a TIFF file that is too much for Pillow, holds; None for all others."""
    file.seek(0)
    start = file.read(len(NPY))
    file.seek(0)
    if start == NPY:
        return read_npy(file)
    return find_tiff(file) if start[:4] in STARTS else None


def _header_of(deep: ArrayFile) -> Header:
    channels, height, width, _ = deep.layout
    return Header((height, width), channels == 1, False, None if deep.is_plain else channels)


def decode(file: ImageFile, channels: int) -> UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]:
    """The first frame of an image file as `channels` channels, upright.

    - Orientation from EXIF or XMP is applied.
    - Pixels of 8 bits become uint8. All others become float32, white being 1; see `patchcast.data.arrays`.
    - Palette, CMYK, YCbCr and LAB become RGB; colors become gray by ITU-R 601 if one channel is requested.
    - Transparent images are composed onto white, unless 4 channels are requested.

    The tensor has channels last in memory, as decoders write it, which makes resizing faster.

    Args:
        channels: 1 (gray), 3 (RGB) or 4 (RGBA), or as many as a file of other channels has.
    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        jpeg = _decode_jpeg(file, channels)
        if jpeg is not None:
            return jpeg
        deep = _find_deep(file)
        if deep is not None:
            return decode_deep(deep, channels)
        with open_image(file) as image:
            if channels not in MODES and image.mode not in DEEP_MODES:
                raise ValueError(f"{len(image.getbands())} channels of color where {channels} are asked for")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in DEEP_MODES:
                return decode_deep(from_pillow(image), channels)
            pixels = np.array(_convert(image, channels))
    except Exception as problem:
        raise UnreadableImageError(_reason(problem, file)) from problem
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _decode_jpeg(file: ImageFile, channels: int) -> UInt8[Tensor, "C H W"] | None:
    """What Pillow would make of an ordinary JPEG, by torchvision, in about half the time (`benchmarks/input.py`); None
    for all else: other formats, broken and huge files, those with EXIF, and colors that have to become gray."""
    file.seek(0)
    if decode_jpeg is None or file.read(3) != JPEG:
        return None
    file.seek(0)
    content = bytearray(file.read())
    height, width, colors, _ = _plain_jpeg(content)
    is_ordinary = (colors, channels) in ((1, 1), (1, 3), (3, 3))
    if not is_ordinary or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    try:
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        return decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode)
    except RuntimeError:
        return None  # Pillow tells what is wrong with it


def baseline_jpeg(content: bytearray, channels: int) -> tuple[int, int] | None:
    """Height and width of a JPEG that any decoder reads alike, but for rounding; None for all others.

    Those are of the baseline process, with 8 bits, as many colors as `channels`, no color transform of Adobe's, nothing
    that turns them, not larger than Pillow's limit, and they end where a JPEG ends.
    """
    if not content.startswith(JPEG) or not content.rstrip(b"\0").endswith(END_OF_IMAGE):
        return None
    height, width, colors, is_baseline = _plain_jpeg(content)
    is_ours = is_baseline and colors == channels and channels in (1, 3)
    return (height, width) if is_ours and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf) else None


def _plain_jpeg(content: bytearray) -> tuple[int, int, int, bool]:
    """Height, width and number of colors of a JPEG file, and whether it is of the baseline process with 8 bits and
    without a mark of Adobe's; zeros if it has EXIF, or XMP that turns it, or another structure than most."""
    at, found, is_adobes = 2, (0, 0, 0, False), False
    while content[at : at + 1] == b"\xff":
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 10]
        if marker == START_OF_SCAN:
            return (*found[:3], found[3] and not is_adobes)
        if marker in START_OF_FRAME and len(segment) == 6:
            is_baseline = marker == START_OF_FRAME[0] and segment[0] == 8
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            found = height, width, segment[5], is_baseline
        is_adobes = is_adobes or marker == ADOBE
        if length < 2 or segment.startswith(b"Exif"):
            break
        if segment.startswith(b"http:") and content.find(b"tiff:Orientation", at, at + 2 + length) >= 0:
            break
        at += 2 + length
    return 0, 0, 0, False


def is_transparent(file: ImageFile) -> bool:
    """Whether any pixel is transparent: many files have an opaque alpha channel."""
    try:
        with open_image(file) as image:
            return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
    except Exception as problem:
        raise UnreadableImageError(_reason(problem, file)) from problem


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors)
    return image.convert(MODES[channels])


def _reason(problem: Exception, file: ImageFile) -> str:
    if isinstance(problem, Image.UnidentifiedImageError):
        file.seek(0)
        return "no known image format" if file.read(1) else "empty file"
    if isinstance(problem, Image.DecompressionBombError):
        limit = "; --max_pixels (max_pixels in Python) raises the limit"
        return "decompression bomb: " + str(problem).partition(",")[0].removeprefix("Image size ").strip() + limit
    return str(problem).partition("\n")[0] or type(problem).__name__
