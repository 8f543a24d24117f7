"""Bands, pages and orientation: each read right, or refused in a sentence, and never in part in silence."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from patchcast.data import open_images
from patchcast.data.decode import UnreadableImageError, decode, read_header
from tests.data.test_sources import values
from tests.data.test_tar import pack, png

tifffile = pytest.importorskip("tifffile")
BANDS = np.random.default_rng(0).integers(0, 60_000, (13, 20, 30), dtype=np.uint16)


def written(kind: str, bands: np.ndarray = BANDS) -> BytesIO:
    file = BytesIO()
    if kind == "shaped":
        tifffile.imwrite(file, bands, photometric="minisblack")
    elif kind == "page by page":
        with tifffile.TiffWriter(file) as writer:
            for band in bands:
                writer.write(band, photometric="minisblack", metadata=None)
    elif kind == "by Pillow":
        pages = [Image.fromarray(band) for band in bands]
        pages[0].save(file, "tiff", save_all=True, append_images=pages[1:])
    elif kind == "ImageJ":
        tifffile.imwrite(file, bands, imagej=True)
    elif kind == "compressed":
        tifffile.imwrite(file, bands, photometric="minisblack", compression="zlib")
    elif kind == "planes":
        tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="separate")
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["shaped", "page by page", "by Pillow", "ImageJ", "compressed", "planes"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bands_are_channels_however_they_were_written(kind, dtype, tmp_path):
    bands = (BANDS // 256).astype(dtype) if dtype == "uint8" else BANDS.astype(dtype)
    file = written(kind, bands)
    white = np.iinfo(dtype).max if dtype != "float32" else 1
    assert read_header(file) == ((20, 30), False, False, 13)
    assert np.allclose(decode(file, 13).numpy(), bands / np.float32(white))
    for channels in (1, 3):
        with pytest.raises(UnreadableImageError, match=f"13 channels where {channels} are asked for"):
            decode(file, channels)
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    assert open_images(str(tmp_path)).channels == 13
    with pytest.raises(UnreadableImageError):
        decode(BytesIO(file.getvalue()[: len(file.getvalue()) // 2]), 13)


def test_pages_that_are_no_bands_are_named():
    file = BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for size in (20, 30):
            writer.write(np.full((size, size), size, np.uint8), photometric="minisblack", metadata=None)
    with pytest.warns(UserWarning, match="several pages that are no bands, the first page is read"):
        assert decode(file, 1).unique().tolist() == [20]
    colors = BytesIO()
    tifffile.imwrite(colors, np.stack([np.full((8, 9, 3), value, np.uint8) for value in (1, 2)]), photometric="rgb")
    with pytest.warns(UserWarning, match="several pages"):
        assert decode(colors, 3).unique().tolist() == [1]


def test_smaller_versions_of_the_first_page_do_not_count():
    file = BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.full((20, 30), 5, np.uint16), subifds=1)
        writer.write(np.full((10, 15), 6, np.uint16), subfiletype=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(file, 1).shape == (1, 20, 30)


# ---- orientation -----------------------------------------------------------------------------------------------------

UPRIGHT = np.zeros((40, 64), dtype=np.uint8)
UPRIGHT[:20, :32] = 255
UNDO = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
    6: np.rot90, 7: lambda a: np.rot90(np.transpose(a), 2), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_xmp_turns_every_format(kind, orientation):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    options = {"png": {"pnginfo": info}, "tiff": {"tiffinfo": {700: xmp(orientation)}}}
    file = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(UNDO[orientation](UPRIGHT)))
    image.convert("RGB").save(file, kind, **options.get(kind, {"xmp": xmp(orientation)}))
    assert read_header(file).size == (40, 64)
    decoded = decode(file, 1)[0].numpy()
    assert decoded.shape == UPRIGHT.shape
    assert np.abs(decoded.astype(int) - UPRIGHT).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 5])
def test_orientation_turns_deep_images(orientation, channels):
    turned = np.ascontiguousarray(UNDO[orientation](UPRIGHT)).astype(np.uint16) * 257
    file = BytesIO()
    stacked = turned if channels == 1 else np.stack([turned] * channels)
    tifffile.imwrite(file, stacked, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    exif, deep_png = Image.Exif(), BytesIO()
    exif[274] = orientation
    Image.fromarray(turned).save(deep_png, "png", exif=exif)
    for each in (file, *([deep_png] if channels == 1 else [])):
        assert read_header(each).size == (40, 64)
        assert torch.equal(decode(each, channels)[-1], torch.tensor(UPRIGHT / 255).float())


# ---- several images in one sample of a tar ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("png", "seg.png"), ("jpg", "png"), ("image.png", "mask.png"), ("rgb.png", "depth.png"), ("png", "Labels.png")],
)
def test_masks_of_a_tar_sample_are_not_trained_on(tmp_path, first, second):
    members = {}
    for number in range(4):
        members[f"s/{number:03}.{second}"] = png(200)
        members[f"s/{number:03}.{first}"] = png(number)
        members[f"s/{number:03}.cls"] = b"%d" % number
    with pytest.warns(
        UserWarning, match=rf"^passed over 4 images of .*a\.tar, each one of several in its sample: .*\.{second}"
    ):
        images = open_images(str(pack(tmp_path / "a.tar", members)))
    assert (values(images), images.labels.tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_names_with_points_are_no_samples(tmp_path):
    members = {f"IMG_2020.{number:02}.01.png": png(number) for number in range(5)}
    assert values(open_images(str(pack(tmp_path / "a.tar", members)))) == [0, 1, 2, 3, 4]


def test_a_folder_of_masks_is_no_class(tmp_path):
    for number in range(3):
        for folder, value in (("images", number), ("masks", 200)):
            (tmp_path / "a" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / folder / f"{number}.png").write_bytes(png(value))
    with pytest.warns(UserWarning, match="3 in 'masks'"):
        images = open_images(str(tmp_path / "a"))
    assert (values(images), images.labels) == ([0, 1, 2], None)


def test_16_bit_colors_in_png_are_read_with_8_and_said(tmp_path):
    colors = np.full((2, 3, 3), 0x8001, dtype=">u2")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in colors))
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    (tmp_path / "a.png").write_bytes(start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.warns(UserWarning, match="16-bit colors are read with 8 bits"):
        images = open_images(str(tmp_path))
    assert (images[0].image.dtype, set(images[0].image.flatten().tolist())) == (torch.uint8, {0x80})
