"""The palette: equal to transformers' processor on real images, and what goes wrong said in one sentence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchcast.geometry import Grid
from patchcast.tokenizers import palette as palette_module
from patchcast.tokenizers.palette import Palette, build_table, fit_palette, nearest, to_levels
from tests.imagegpt.parts import grays

NEAR_TIES = [
    [5, 21, 20],
    [21, 24, 14],
    [26, 35, 38],
    [31, 60, 100],
    [56, 107, 94],
    [68, 53, 69],
    [73, 86, 81],
    [152, 158, 178],
    [226, 211, 230],
    [249, 254, 240],
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> Tensor:
    import pyarrow.parquet as pq

    table = pq.read_table(shared_data / "cifar10" / "test-00000-of-00001.parquet")
    files = [row["bytes"] for row in table.column("img").to_pylist()]
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def openai(shared_data: Path) -> Palette:
    return Palette.load(shared_data / "imagegpt_clusters.npy")


def theirs(images: Tensor, clusters: np.ndarray) -> Tensor:
    transformers = pytest.importorskip("transformers")
    processor = transformers.ImageGPTImageProcessor(clusters=clusters, size={"height": 32, "width": 32})
    return torch.cat([processor(list(part), return_tensors="pt")["input_ids"] for part in images.split(128)])


def test_codes_are_those_of_transformers_processor(cifar: Tensor, openai: Palette) -> None:
    some = cifar[::250]
    assert torch.equal(openai.encode(some), theirs(some, openai.colors.numpy()))


@pytest.mark.slow
def test_codes_of_every_pixel_of_cifar_10_are_those_of_transformers_processor(cifar: Tensor, openai: Palette) -> None:
    assert torch.equal(openai.encode(cifar), theirs(cifar, openai.colors.numpy()))


def test_near_ties_fall_as_in_transformers_processor(openai: Palette) -> None:
    """The ten colors of the test set whose nearest of OpenAI's is another in exact arithmetic: the rounding is
    theirs."""
    pixels = torch.tensor(NEAR_TIES)
    image = pixels.repeat(103, 1)[:1024].T.reshape(1, 3, 32, 32).to(torch.uint8)
    codes = openai.encode(image)
    exact = torch.cdist((pixels.double() - 127.5) / 127.5, openai.colors.double()).argmin(dim=1)
    assert not (codes[0, :10] == exact).any()
    assert torch.equal(codes, theirs(image, openai.colors.numpy()))


def test_the_table_is_the_nearest_color_everywhere() -> None:
    colors = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    colors[7] = colors[3]  # a tie everywhere: the first must win
    table = build_table(colors)
    assert table.shape == (2**24,)
    index = torch.randint(2**24, (20_000,), generator=torch.Generator().manual_seed(1))
    pixels = torch.stack([index >> 16, (index >> 8) & 255, index & 255], dim=1)
    assert torch.equal(table[index].long(), nearest((pixels.float() - 127.5) / 127.5, colors))
    assert not (table == 7).any()
    levels = torch.arange(256).float()
    distance = (levels[:, None] - torch.linspace(0, 255, 5)).abs()
    assert torch.equal(build_table(torch.linspace(-1, 1, 5)[:, None]).long(), distance.argmin(dim=1))


def test_the_table_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = torch.arange(2**24).remainder(5).to(torch.int16)
    monkeypatch.setattr(palette_module, "build_table", lambda colors: table)
    colors = torch.rand(5, 3)
    image = torch.tensor([[[[0]], [[1]], [[3]]]], dtype=torch.uint8)
    assert Palette(colors).encode(image).item() == 259 % 5
    monkeypatch.setattr(palette_module, "build_table", None)
    assert Palette(colors).encode(image).item() == 259 % 5
    assert {file.suffix for file in (tmp_path / "patchcast").glob("palette*")} == {".npy", ".seal"}
    monkeypatch.setattr(palette_module, "build_table", lambda colors: table)
    (tmp_path / "patchcast").joinpath("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "patchcast" / "file"))  # cannot be written to
    with pytest.warns(UserWarning, match="no cache folder"):
        assert Palette(colors).encode(image).item() == 259 % 5


def test_encoding_and_decoding_grays() -> None:
    images = torch.randint(256, (3, 1, 4, 6), dtype=torch.uint8)
    everything = Palette(torch.arange(256)[:, None] / 127.5 - 1)
    assert torch.equal(everything.decode(everything.encode(images), Grid(4, 6)), images)
    assert everything.psnr(images) == float("inf")
    two = Palette(torch.tensor([[-1.0], [1.0]]))
    assert torch.equal(two.encode(images), (images.flatten(1) > 127).long())
    floats = images / 127.5 - 1
    assert torch.equal(everything.encode(floats), everything.encode(images))
    assert torch.equal(to_levels(floats), images)


def test_psnr_is_that_of_the_definition(openai: Palette, cifar: Tensor) -> None:
    images = cifar[:50]
    back = openai.decode(openai.encode(images), Grid(32, 32))
    expected = 10 * np.log10(255**2 / np.mean((images.numpy().astype(float) - back.numpy().astype(float)) ** 2))
    assert openai.psnr(images) == pytest.approx(expected)
    assert 32 < expected < 36


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_saved_and_loaded(suffix: str, tmp_path: Path) -> None:
    palette = Palette(torch.rand(9, 3) * 2 - 1)
    palette.save(tmp_path / f"palette{suffix}")
    assert torch.equal(Palette.load(tmp_path / f"palette{suffix}").colors, palette.colors)


def test_fitting_finds_the_colors_there_are_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[10, 20, 30], [200, 10, 10], [20, 220, 90], [250, 250, 240]])
    kinds = torch.randint(4, (20, 16, 16), generator=generator)
    noise = torch.randint(-4, 5, (20, 16, 16, 3), generator=generator)
    images = (truth[kinds] + noise).clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2)
    source = [(image, 0) for image in images]
    palette = fit_palette(source, 4, seed=3)
    assert torch.equal(palette.colors, fit_palette(source, 4, seed=3).colors)
    found = (palette.colors + 1) * 127.5
    assert (torch.cdist(found, truth.float()).min(dim=0).values < 3).all()
    brightness = palette.colors @ torch.tensor([0.299, 0.587, 0.114])
    assert (brightness.diff() > 0).all()


def test_a_palette_as_large_as_the_images_colors_loses_nothing() -> None:
    image = torch.tensor([[[0, 17, 34], [51, 68, 85]]], dtype=torch.uint8)
    palette = fit_palette([(image, 0)], 64)
    assert palette.vocabulary == 6
    assert palette.psnr(image[None]) == float("inf")


def test_fitting_looks_at_no_more_pixels_than_asked() -> None:
    images = [(torch.full((1, 4, 4), i, dtype=torch.uint8), 0) for i in range(100)]
    assert len(palette_module._sample_pixels(images, 200, 0)) == 200
    assert len(palette_module._sample_pixels(images, 10**6, 0)) == 1600


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="1 channels; the images have 3"):
        grays().encode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        grays().encode(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x / 127\.5 - 1"):
        Palette(torch.tensor([[0.0], [255.0]]))
    with pytest.raises(ValueError, match="up to 4096 colors"):
        Palette(torch.zeros(5000, 3))
    with pytest.raises(ValueError, match="asked for 5000"):
        fit_palette([(torch.zeros(3, 2, 2, dtype=torch.uint8), 0)], 5000)
    with pytest.raises(ValueError, match=r"image 0 is torch\.float32 with 3 channels"):
        fit_palette([(torch.zeros(3, 2, 2), 0)], 4)
    with pytest.raises(ValueError, match=r"saved as \.npy or \.safetensors; got palette\.txt"):
        grays().save("palette.txt")


def test_a_damaged_table_in_the_cache_is_made_again(tmp_path, monkeypatch):
    """A flipped bit would be another code for some colors, without an error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(palette_module, "build_table", lambda colors: torch.arange(4000, dtype=torch.int16))
    colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    wanted = palette_module._cached_table(colors)
    (file,) = (tmp_path / "patchcast").glob("palette-*.npy")
    whole = file.read_bytes()
    for damaged in (whole[:-4], b"", b"junk", whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:]):
        file.write_bytes(damaged)
        assert torch.equal(palette_module._cached_table(colors), wanted)
        assert file.read_bytes() == whole
    monkeypatch.setattr(palette_module, "build_table", None)
    assert torch.equal(palette_module._cached_table(colors), wanted), "read, not built"
