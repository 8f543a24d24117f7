"""TIFF files that Pillow cannot read: many channels, more than 8 bits, or one page per band."""

from __future__ import annotations

import logging
import warnings
from io import BufferedReader, BytesIO
from typing import Any

import numpy as np
from PIL import Image

from patchcast.data.arrays import DEEP_MODES, ArrayFile, ArrayLayout, checked, shape_of

BIG_ENDIAN_BIGTIFF = b"MM\0+"
STARTS = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIGTIFF)
UNSIGNED = 1
"""TIFF's SampleFormat of unsigned integers."""
ORIENTATION = 274
TURNS = {2: (False, (-1,)), 3: (False, (-2, -1)), 4: (False, (-2,)), 5: (True, ()), 6: (True, (-1,)),
         7: (True, (-2, -1)), 8: (True, (-2,))}  # fmt: skip
"""By orientation, whether rows and columns are exchanged, and which axes are then reversed."""


def find_tiff(file: BytesIO | BufferedReader) -> ArrayFile | None:
    """The pixels of a TIFF file that Pillow cannot read in full; None for those that it can.

    Raises:
        ValueError: if its header says what cannot be read.
    """
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start == BIG_ENDIAN_BIGTIFF:
        return _read(file)  # Pillow warns of corruption where there is none
    try:
        with Image.open(file, formats=["TIFF"]) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            bits, samples, format = max(tags.get(258, (1,))), tags.get(277, 1), tags.get(339, (UNSIGNED,))[0]
            is_exact = bits <= 8 or (image.mode in DEEP_MODES and (bits < 32 or format != UNSIGNED))
            if is_exact and samples <= len(image.getbands()) and getattr(image, "n_frames", 1) == 1:
                return None
    except Image.UnidentifiedImageError:
        pass  # more channels than Pillow has a name for
    finally:
        file.seek(0)
    return _read(file)


def _read(file: BytesIO | BufferedReader) -> ArrayFile | None:
    """Read with tifffile: pages become channels if each holds one band of the same size; otherwise the first page."""
    try:
        import tifffile
    except ModuleNotFoundError as problem:
        raise ValueError(
            "TIFF files of many channels, pages or bits need tifffile: pip install 'patchcast[data]'"
        ) from problem
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log of broken files is raised here

    with tifffile.TiffFile(file) as opened:
        pages: Any = list(opened.pages)
        page = opened.pages.first
        if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"a TIFF page of axes {page.axes} and type {page.dtype} is no image")
        kind = np.dtype(page.dtype).newbyteorder("=")
        is_stack = _is_stack(opened.series[0], page, pages)
        if not is_stack and sum(not other.is_reduced for other in pages) > 1:
            warnings.warn("of TIFF files with several pages that are no bands, the first page is read", stacklevel=2)
        _check_length(file, opened.series[0].pages if is_stack else [page])
        is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and kind.kind == "u"
        sizes = dict(zip(page.axes, page.shape, strict=True))
        channels = opened.series[0].shape[0] if is_stack else sizes.get("S", 1)
        tag = page.tags.get(ORIENTATION)
    stored = ArrayLayout(channels, sizes["Y"], sizes["X"], is_first=page.axes != "YXS")
    is_sideways, reversed_axes = TURNS.get(0 if tag is None else tag.value, (False, ()))
    upright = stored._replace(height=stored.width, width=stored.height) if is_sideways else stored

    def read() -> np.ndarray:
        file.seek(0)
        with tifffile.TiffFile(file) as opened:
            array = (opened.series[0] if is_stack else opened.pages.first).asarray().astype(kind)
        array = array.reshape(shape_of(stored))
        array = np.iinfo(kind).max - array if is_inverted else array
        planes = array if stored.is_first else array.transpose(2, 0, 1)
        planes = np.flip(planes.swapaxes(1, 2) if is_sideways else planes, reversed_axes)
        return planes if stored.is_first else planes.transpose(1, 2, 0)

    return ArrayFile(checked(upright, kind), kind, read)


def _is_stack(series: Any, page: Any, pages: list[Any]) -> bool:
    """Whether every page holds one band of the same size; smaller versions of the image are ignored."""
    is_one_band = page.axes == "YX" and page.bitspersample >= 8 and series.shape[1:] == page.shape
    rest = [other for other in pages if not other.is_reduced and other.shape != page.shape]
    return is_one_band and len(series.shape) == 3 and not rest and page.colormap is None


def _check_length(file: BytesIO | BufferedReader, pages: Any) -> None:
    whole = [page for page in pages if page is not None]
    ends = [start + count for page in whole for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends, default=0) > file.seek(0, 2):
        raise ValueError("truncated TIFF file")
