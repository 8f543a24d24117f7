"""Satellite and medical images: more than 8 bits, any number of channels, in TIFF and .npy files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.data import Augment, Evaluate, TrainSet, channel_statistics, open_images
from patchcast.data import images as images_module
from patchcast.data.decode import UnreadableImageError, decode, read_header
from patchcast.data.transforms import resize

tifffile = pytest.importorskip("tifffile")
CHANCE = np.random.default_rng(0)


def tiff(array: np.ndarray, **options) -> io.BytesIO:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    file.seek(0)
    return file


def npy(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file


BANDS = CHANCE.integers(0, 4096, (8, 9, 13), dtype=np.uint16)


@pytest.mark.parametrize(
    "file",
    [
        tiff(BANDS, planarconfig="contig", photometric="minisblack"),
        tiff(BANDS.transpose(2, 0, 1), planarconfig="separate", photometric="minisblack"),
        tiff(BANDS, planarconfig="contig", photometric="minisblack", compression="lzw", predictor=True),
        tiff(BANDS, planarconfig="contig", photometric="minisblack", tile=(16, 16), compression="deflate"),
        tiff(BANDS, planarconfig="contig", photometric="minisblack", bigtiff=True, byteorder=">"),
        npy(BANDS.transpose(2, 0, 1)[:, :, :9]),
        npy(np.asfortranarray(np.pad(BANDS, ((0, 8), (0, 8), (0, 0)))).astype(">u2")),
    ],
    ids=["interleaved", "planar", "lzw", "tiled", "big-endian", "npy-not-enough", "npy"],
)
def test_thirteen_bands_are_exact(file, request):
    if request.node.callspec.id == "npy-not-enough":
        # 13 x 8 x 9: the shorter of first and last axis is the last, and these are nine channels.
        assert read_header(file).channels == 9
        return
    header = read_header(file)
    assert (header.channels, header.is_gray, header.has_alpha) == (13, False, False)
    pixels = decode(file, 13)
    assert pixels.dtype == torch.float32
    assert pixels.shape[1:] == header.size
    assert np.array_equal(pixels[:, :8, :9].numpy(), BANDS.transpose(2, 0, 1) / np.float32(65535))
    with pytest.raises(UnreadableImageError, match=r"^13 channels where 3 are asked for$"):
        decode(file, 3)


@pytest.mark.parametrize("make", [tiff, npy])
def test_numbers_are_scaled_by_their_kind_and_nothing_else(make):
    signed = np.array([[-1000, 0], [3000, 7]], dtype=np.int16)
    assert decode(make(signed), 1).tolist() == [[[-1000, 0], [3000, 7]]]
    floats = np.array([[0.25, -3.5], [1e6, 0]], dtype=np.float32)
    assert decode(make(floats), 1).tolist() == [[[0.25, -3.5], [1e6, 0]]]
    wide = np.array([[0, 2**32 - 1]], dtype=np.uint32)
    assert decode(make(wide), 1).tolist() == [[[0, 1]]]
    bands = CHANCE.integers(0, 256, (6, 7, 5), dtype=np.uint8)
    options = {"planarconfig": "contig", "photometric": "minisblack"} if make is tiff else {}
    assert np.array_equal(decode(make(bands, **options), 5).numpy(), bands.transpose(2, 0, 1) / np.float32(255))
    with pytest.raises(UnreadableImageError, match="holds values that are not finite"):
        decode(make(np.array([[np.nan, 1]], dtype=np.float32)), 1)


def test_sixteen_bit_colors_keep_their_bits_and_become_gray_if_asked():
    colors = CHANCE.integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    file = tiff(colors, photometric="rgb")
    assert np.array_equal(decode(file, 3).numpy(), colors.transpose(2, 0, 1) / np.float32(65535))
    luma = colors @ np.array([0.299, 0.587, 0.114]) / 65535
    assert np.abs(decode(file, 1)[0].numpy() - luma).max() < 1e-6


def test_eight_bits_of_gray_or_rgb_stay_eight_bits():
    colors = CHANCE.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    for file in (npy(colors), npy(np.ascontiguousarray(colors.transpose(2, 0, 1))), tiff(colors, photometric="rgb")):
        assert read_header(file).channels is None
        assert decode(file, 3).dtype == torch.uint8
        assert np.array_equal(decode(file, 3).numpy(), colors.transpose(2, 0, 1))
        gray = decode(file, 1)
        assert (gray.dtype, gray.shape) == (torch.uint8, (1, 6, 7))
        assert np.abs(gray[0].numpy() - colors @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_white_is_zero_files_are_turned_round():
    gray = np.array([[0, 65535]], dtype=np.uint16)
    bands = np.stack([gray] * 5, axis=-1)
    assert decode(tiff(bands, photometric="miniswhite", planarconfig="contig"), 5)[0].tolist() == [[1, 0]]


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(np.array([[Evil()]], dtype=object)).getvalue(), "holds Python objects, which are not read"),
        (npy(BANDS).getvalue()[:-1], "truncated .npy file"),
        (npy(BANDS).getvalue()[:20], "EOF"),
        (npy(np.zeros(5)).getvalue(), r"an array of shape \(5,\) is no image: it needs"),
        (npy(np.zeros((2, 2), dtype="S3")).getvalue(), "numbers of kind .S3 are no pixels"),
        (npy(np.zeros((2, 2))).getvalue().replace(b"(2, 2)", b"(2,0)"), "."),
        (npy(np.zeros((1, 1))).getvalue().replace(b"(1, 1), }" + b" " * 10, b"(999999, 99999999)}"), "bomb"),
        (tiff(BANDS, photometric="minisblack", planarconfig="contig").getvalue()[:-100], "truncated"),
    ],
    ids=["pickle", "short", "header", "shape", "text", "empty", "bomb", "tiff"],
)
def test_what_cannot_be_read_has_a_reason(content, reason):
    for read in (lambda file: decode(file, 13), read_header):
        with pytest.raises(UnreadableImageError, match=reason):
            read(io.BytesIO(content))


def test_a_source_of_bands(tmp_path):
    """Channels, statistics and augmentation follow the data; another number of bands is skipped and named."""
    for number in range(6):
        array = CHANCE.integers(0, 4096, (20, 24, 6), dtype=np.uint16)
        tifffile.imwrite(
            tmp_path / f"{number}.tif", array, photometric="minisblack", planarconfig="contig", compression="deflate"
        )
    tifffile.imwrite(tmp_path / "7.tif", BANDS, photometric="minisblack", planarconfig="contig")
    images = open_images(str(tmp_path))
    assert (len(images), images.channels, images.typical_size) == (7, 6, (20, 24))
    with pytest.warns(UserWarning, match=r"skipped .*7\.tif: 13 channels where 6 are asked for"):
        assert torch.equal(images[6].image, images[0].image)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([2048 / 65535] * 6, rel=0.05)
    assert max(std) < 1 / 255 * 6
    train = TrainSet(images, Augment((16, 16), (0.2, 1.0), True, mean, std), seed=1)
    before = images[2].image.clone()
    batch = torch.stack([train[0, index][0] for index in range(6)])
    assert torch.equal(batch, torch.stack([train[0, index][0] for index in range(6)]))
    assert batch.mean().abs() < 0.2
    assert 0.3 < batch.std() < 1.2
    assert torch.equal(images[2].image, before)
    assert Evaluate((20, 24), mean, std)(before).mean().abs() < 0.3


def test_preloaded_numbers_stay_as_they_are(tmp_path, monkeypatch):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", CHANCE.integers(0, 4096, (8, 9, 5), dtype=np.uint16))
    lazy, held = open_images(str(tmp_path)), open_images(str(tmp_path))
    assert held.preload()
    evaluate = Evaluate((8, 9), (0.03,) * 5, (0.01,) * 5)
    for _ in range(2):  # normalizing must not write into what is held
        assert all(torch.equal(evaluate(held[i].image), evaluate(lazy[i].image)) for i in range(3))
    monkeypatch.setattr(images_module, "DECODED_BYTES", 2000)  # enough for bytes, not for numbers
    assert not open_images(str(tmp_path)).preload()


def test_eight_and_sixteen_bits_together_mean_the_same(tmp_path):
    Image.fromarray(np.full((6, 8), 100, np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(np.full((6, 8), 100 * 257, np.uint16)).save(tmp_path / "16.png")
    images = open_images(str(tmp_path))
    evaluate = Evaluate((6, 8), (0.3,), (0.2,))
    assert torch.allclose(evaluate(images[0].image), evaluate(images[1].image))
    assert not images.preload()
    mean, _ = channel_statistics(images)
    assert mean[0] == pytest.approx(100 / 255)


def test_a_constant_band_can_be_normalized(tmp_path):
    np.save(tmp_path / "a.npy", np.full((8, 8), 1234.5678, dtype=np.float32))
    images = open_images(str(tmp_path))
    (mean,), (std,) = channel_statistics(images)
    assert Evaluate((8, 8), (float(f"{mean:.4g}"),), (float(f"{std:.4g}"),))(images[0].image).abs().max() < 1


def test_resizing_numbers_is_that_of_bytes():
    image = torch.from_numpy(CHANCE.integers(0, 256, (3, 30, 40), dtype=np.uint8))
    exact = resize(image.float(), (13, 17))
    assert (resize(image, (13, 17)).float() - exact.clamp(0, 255)).abs().max() < 2


def test_arrays_beside_photographs_are_not_images(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros(768))
    assert len(open_images(str(tmp_path))) == 1


def test_channels_can_be_chosen_of_many_only_where_they_are(tmp_path):
    np.save(tmp_path / "a.npy", BANDS)
    assert open_images(str(tmp_path), channels=9).channels == 9
    with pytest.raises(ValueError, match="asked for 5"):
        open_images("digits", channels=5)


def test_without_tifffile_the_extra_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tifffile":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    many, one = tiff(BANDS, photometric="minisblack", planarconfig="contig"), tiff(BANDS[:, :, 0])
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnreadableImageError, match=r"need tifffile: pip install 'patchcast\[data\]'$"):
        decode(many, 13)
    assert decode(one, 1).shape == (1, 8, 9), "one channel needs it not"
