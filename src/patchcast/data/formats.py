"""Image formats. A file is recognized by its content, and opened only as one of the formats listed here."""

from __future__ import annotations

from functools import cache
from typing import Any

from PIL import Image

FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000", "MPO", "HEIF", "JXL", "DIB", "PCX", "DCX",
    "DDS", "ICO", "CUR", "ICNS", "PSD", "QOI", "SGI", "SUN", "FITS", "FLI", "BLP", "FTEX", "GBR", "IM", "IMT", "MSP",
    "PCD", "PIXAR", "XBM", "XPM", "XVTHUMB", "SPIDER", "TGA",
)  # fmt: skip
"""Formats of Pillow whose pixels Pillow decodes itself. Not among them: PostScript and EPS, which Pillow hands to
Ghostscript; WMF and EMF, to Windows; IPTC, which holds a file of any other format; BUFR, GRIB, HDF5 and MPEG, of which
Pillow reads no pixels. HEIF and JXL come with plugins that a user may have registered."""
OF_TIFFFILE = (".btf", ".tf2", ".tf8", ".lsm", ".svs", ".ndpi")
"""More names of TIFF files."""
ARRAYS = (".npy",)
"""Images too, where there are no others: next to photographs they are most likely features or masks."""


@cache
def formats() -> list[str]:
    """Those of `FORMATS` that the installed Pillow opens."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def extensions() -> tuple[str, ...]:
    """Ends of the names of image files, in lower case.

    >>> {".jpg", ".jfif", ".png", ".avif", ".jp2"} - set(extensions()), ".eps" in extensions(), extensions()[0]
    (set(), False, '.jpg')
    """
    names = Image.registered_extensions()
    order = {name: place for place, name in enumerate([*formats(), "MPO"])}
    known = [ending for ending, name in names.items() if name in order]
    return (".jpg", *sorted({*known, *OF_TIFFFILE} - {".jpg"}, key=lambda ending: order.get(names.get(ending, ""), 99)))


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(extensions())


def open_image(file: Any) -> Image.Image:
    """`PIL.Image.open` for the formats in `FORMATS` only, whatever the file's name.

    Raises:
        PIL.UnidentifiedImageError: if it is of no format in `FORMATS`.
    """
    return Image.open(file, formats=formats())
