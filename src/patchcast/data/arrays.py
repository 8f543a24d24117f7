"""Images that no photograph format holds: more than 8 bits, or any number of channels, in TIFF, PNG and .npy files.

They become float32. The scale depends on the dtype only: unsigned integers are divided by their maximum, so 65535 of 16
bits becomes 1, as 255 of 8 bits. Signed integers (Hounsfield units, heights) and floating-point numbers are not scaled.
A run normalizes by the data's own mean and standard deviation by default, so any of these scales work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BufferedReader, BytesIO
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

NPY = b"\x93NUMPY"
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's grays of more than 8 bits."""
LARGEST_VALUES = 2**31
"""Bytes of pixels beyond which a file is taken for a decompression bomb."""
PIXELS = 2 * 89_478_485
"""Pillow's limit of an image's pixels, to which that of bytes belongs."""
LUMA = (0.299, 0.587, 0.114)


class ArrayLayout(NamedTuple):
    """The layout of an array: channels, height and width, and whether channels come first."""

    channels: int
    height: int
    width: int
    is_first: bool


class ArrayFile(NamedTuple):
    """An array file: its layout, its dtype, and how to read it."""

    layout: ArrayLayout
    kind: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def is_plain(self) -> bool:
        """Whether it holds 8-bit gray or RGB, which stay uint8."""
        return self.kind == np.uint8 and self.layout.channels in (1, 3)


def from_pillow(image: Image.Image) -> ArrayFile:
    """An image of one of the `DEEP_MODES`."""
    kind = np.dtype({"I": np.int32, "F": np.float32}.get(image.mode, np.uint16))
    return ArrayFile(ArrayLayout(1, image.height, image.width, True), kind, lambda: np.array(image).astype(kind))


def decode_deep(found: ArrayFile, channels: int) -> UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]:
    """Its pixels: uint8 if it is plain, else float32.

    One channel is repeated if more are requested, and three become one by ITU-R 601; other numbers of channels are not
    converted.

    Raises:
        ValueError: if it has another number of channels than requested, or values that are not finite.
    """
    layout = found.layout
    if layout.channels not in (channels, 1) and (layout.channels, channels) != (3, 1):
        raise ValueError(f"{layout.channels} channels where {channels} are asked for")
    array = found.read().reshape(shape_of(layout))
    pixels = torch.from_numpy(np.ascontiguousarray(_values(array, found)))
    pixels = pixels if layout.is_first else pixels.permute(2, 0, 1)
    if layout.channels == channels:
        return pixels
    if layout.channels == 1:
        return pixels.expand(channels, -1, -1)
    gray = torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA))[None]
    return gray.round().to(torch.uint8) if found.is_plain else gray


def _values(array: np.ndarray, found: ArrayFile) -> np.ndarray:
    if found.is_plain:
        return array
    if array.dtype.kind == "u":
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    return values


def shape_of(layout: ArrayLayout) -> tuple[int, int, int]:
    channels, height, width, is_first = layout
    return (channels, height, width) if is_first else (height, width, channels)


def checked(layout: ArrayLayout, kind: np.dtype) -> ArrayLayout:
    if kind.kind not in "buif":
        raise ValueError(f"numbers of kind {kind} are no pixels")
    pixels = layout.height * layout.width
    limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    largest = LARGEST_VALUES * max(1.0, limit / PIXELS)
    if pixels > limit or pixels * layout.channels * kind.itemsize > largest:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels, could be")
    if min(layout[:3]) < 1:
        raise ValueError("no pixels")
    return layout


def read_npy(file: BytesIO | BufferedReader) -> ArrayFile:
    """Read a .npy file from its header and bytes only, so that no code in it can run."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, kind = read_header(file)
    if kind.hasobject:
        raise ValueError("holds Python objects, which are not read")
    layout = checked(_layout(shape), kind)
    start, needed = file.tell(), math.prod(shape) * kind.itemsize
    if file.seek(0, 2) - start < needed:
        raise ValueError("truncated .npy file")

    def read() -> np.ndarray:
        file.seek(start)
        values = np.frombuffer(file.read(needed), dtype=kind)
        return np.array(values.reshape(shape, order="F" if is_fortran else "C"), dtype=kind.newbyteorder("="))

    return ArrayFile(layout, kind.newbyteorder("="), read)


def _layout(shape: tuple[int, ...]) -> ArrayLayout:
    """Channels are the first or the last of three axes, whichever is shorter; the last if they are equal."""
    if len(shape) == 2:
        return ArrayLayout(1, shape[0], shape[1], is_first=True)
    if len(shape) != 3:
        raise ValueError(f"an array of shape {shape} is no image: it needs (H, W), (H, W, C) or (C, H, W)")
    is_first = shape[0] < shape[2]
    channels, height, width = shape if is_first else (shape[2], shape[0], shape[1])
    return ArrayLayout(channels, height, width, is_first)
