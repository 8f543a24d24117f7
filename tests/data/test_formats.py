"""Every image format that Pillow decodes is read, and nothing that would start another program."""

from __future__ import annotations

import subprocess
from io import BytesIO

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from patchcast.data import open_images
from patchcast.data.decode import UnreadableImageError, decode, read_header
from patchcast.data.formats import FORMATS, extensions, formats
from patchcast.data.masks import read_mask
from tests.data.test_sources import draw

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
WMF = bytes.fromhex("d7cdc69a00000000000008000800480000000000") + b"\x01\x00\x09\x00" + bytes(40)

PLAIN = ("avif", "tga", "qoi", "pcx", "sgi", "ico")
OTHERS = [EPS, WMF, b"%PDF-1.4\n%%EOF", b"GRIB" + bytes(99), b"\x89HDF\r\n\x1a\n" + bytes(99)]


def test_images_are_read_whatever_their_extension(tmp_path):
    draw(tmp_path / "0.jpg", 0)
    kinds = dict.fromkeys([".jfif", ".JPE"], "jpeg") | dict.fromkeys([".jp2", ".j2k"], "jpeg2000")
    kinds |= {".apng": "png", ".pbm": "ppm", ".dib": "dib"} | {f".{kind}": kind for kind in PLAIN}
    for ending, kind in kinds.items():
        Image.new("RGB", (16, 16), (60, 60, 60)).save(tmp_path / f"x{ending}", kind)
    images = open_images(str(tmp_path), channels=3)
    assert len(images) == 1 + len(kinds)
    assert images.unreadable == []
    assert all(abs(int(example.image.float().mean()) - 60) < 3 for example in list(images)[1:])


@pytest.mark.parametrize(
    "content", [EPS, WMF, b"%PDF-1.4\n%%EOF", b"GRIB" + bytes(99), b"\x89HDF\r\n\x1a\n" + bytes(99)]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.filterwarnings("ignore:skipped")
def test_no_other_program_is_started_whatever_a_file_is_called(tmp_path, monkeypatch, content, name):
    def refuse(*_, **__):
        pytest.fail("a program was started")

    for module, start in ((subprocess, "Popen"), (subprocess, "check_call"), (EpsImagePlugin, "Ghostscript")):
        monkeypatch.setattr(module, start, refuse)
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    for read in (read_header, lambda file: decode(file, 3)):
        with pytest.raises(UnreadableImageError, match="no known image format"):
            read(BytesIO(content))
    (tmp_path / name).write_bytes(content)
    draw(tmp_path / "b.png", 7)
    assert len(open_images(str(tmp_path))) == 1
    with pytest.raises(ValueError, match="cannot be read"):
        read_mask(tmp_path / name)


def test_an_eps_inside_of_an_iptc_file_is_not_reached():
    assert not {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG"} & set(FORMATS)
    assert {"JPEG", "PNG", "TIFF", "WEBP"} <= set(formats())
    assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".mpg"} & set(extensions())


def test_postscript_in_a_tiff_is_not_reached():
    """A TIFF is opened as TIFF only, and by tifffile only if it is one."""
    file = BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, "tiff")
    assert decode(file, 1).shape == (1, 4, 4)
