"""One decoder for whatever a file calls its colors."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.data.decode import UnreadableImageError, decode, is_transparent, read_header

RAMP = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5
COLORS = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def encode(image: Image.Image, kind: str = "png", **options) -> BytesIO:
    file = BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def rgba(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([COLORS, np.full_like(RAMP, alpha)]))


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_lossless_pixels_are_exact(kind):
    decoded = decode(encode(Image.fromarray(COLORS), kind), 3)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), COLORS)


def test_gray_becomes_three_equal_channels_and_colors_become_luma():
    from_gray = decode(encode(Image.fromarray(RAMP)), 3)
    assert all(np.array_equal(channel.numpy(), RAMP) for channel in from_gray)
    luma = COLORS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encode(Image.fromarray(COLORS)), 1)[0].numpy() - luma).max() <= 1


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_kept(kind):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    file = encode(Image.fromarray(values), kind)
    assert read_header(file) == ((1, 4), True, False, 1)
    gray = decode(file, 1)
    assert gray.dtype == torch.float32
    assert np.array_equal(gray[0].numpy(), values / np.float32(65535))
    assert torch.equal(decode(file, 3), gray.expand(3, -1, -1))


def test_palette_becomes_its_colors():
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    file = encode(palette)
    assert not read_header(file).is_gray
    assert decode(file, 3)[:, 0].T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_transparent_palette_entry_is_white():
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    file = encode(palette, transparency=1)
    assert read_header(file).has_alpha
    assert decode(file, 3)[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


def test_cmyk_jpeg_becomes_rgb():
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    decoded = decode(encode(flat.convert("CMYK"), "jpeg", quality=95), 3).float().mean((1, 2))
    assert torch.allclose(decoded, torch.tensor([200.0, 40.0, 90.0]), atol=4)


def test_alpha_is_laid_onto_white_or_kept():
    clear, solid, half = encode(rgba(0)), encode(rgba(255)), encode(rgba(128))
    assert (decode(clear, 3) == 255).all()
    assert np.array_equal(decode(solid, 3).permute(1, 2, 0).numpy(), COLORS)
    expected = 255 + (COLORS.astype(float) - 255) * 128 / 255
    assert np.abs(decode(half, 3).permute(1, 2, 0).numpy() - expected).max() <= 1
    assert (decode(half, 4)[3] == 128).all()
    assert (decode(clear, 1) == 255).all()
    assert [is_transparent(file) for file in (clear, solid, half)] == [True, False, True]


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind, orientation):
    upright = np.zeros((40, 64), dtype=np.uint8)
    upright[:20, :32] = 255  # only the upper left quarter is white
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: np.rot90, 7: lambda a: np.rot90(np.transpose(a), 2), 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(Image.fromarray(np.ascontiguousarray(undo(upright))), kind, exif=exif)
    assert read_header(file).size == (40, 64)
    decoded = decode(file, 1)[0].numpy()
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"quality": 90}, {"subsampling": 0}, {"progressive": True}])
def test_jpegs_are_pillows_to_the_bit(mode, options):
    """They are decoded by torchvision, which is faster; what a file means may not depend on that."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((211, 133), Image.Resampling.BICUBIC).convert(mode)
    file = encode(smooth, "jpeg", **options)
    with Image.open(file) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(decode(file, 3).permute(1, 2, 0).numpy(), expected)
    if mode == "L":
        assert np.array_equal(decode(file, 1)[0].numpy(), expected[..., 0])
    assert not decode(file, 3).is_contiguous(), "channels last, as it was"


def test_jpegs_are_the_same_without_torchvisions_decoder(monkeypatch):
    file = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)), "jpeg")
    fast = decode(file, 3)
    monkeypatch.setattr("patchcast.data.decode.decode_jpeg", None)
    assert torch.equal(decode(file, 3), fast)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    decoded = decode(encode(frames[0], "gif", save_all=True, append_images=frames[1:]), 3)
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_header_reads_size_and_colors_without_pixels(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    file = encode(Image.fromarray(noise), kind)
    start = BytesIO(file.getvalue()[:-1000])
    assert read_header(start) == ((64, 48), False, False, None)
    with pytest.raises(UnreadableImageError):
        decode(start, 3)


def bomb() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is no image", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", "no known image format"),
        (bomb(), r"decompression bomb: \(10000000000 pixels\) exceeds limit of \d+ pixels; --max_pixels .*"),
    ],
    ids=["empty", "text", "signature only", "bomb"],
)
def test_what_is_no_image_is_refused_by_its_header_with_a_reason(content, reason):
    for read in (read_header, lambda file: decode(file, 3)):
        with pytest.raises(UnreadableImageError, match=f"^{reason}$"):
            read(BytesIO(content))


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff", "webp", "gif"])
def test_a_truncated_file_is_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), kind).getvalue()
    with pytest.raises(UnreadableImageError):
        decode(BytesIO(whole[: len(whole) // 2]), 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff", "webp", "gif"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_damaged_bytes_raise_nothing_else(kind):
    chance = np.random.default_rng(1)
    whole = np.frombuffer(encode(Image.fromarray(COLORS), kind).getvalue(), dtype=np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[chance.integers(0, len(whole), 4)] = chance.integers(0, 256, 4)
        try:
            header = read_header(BytesIO(damaged.tobytes()))
            assert decode(BytesIO(damaged.tobytes()), 3).shape[1:] == header.size
        except UnreadableImageError:
            refused += 1
    assert refused > 0
