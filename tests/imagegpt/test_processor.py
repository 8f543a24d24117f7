"""The exported processor of transformers makes the codes that a run was trained on, from photographs of any size."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from patchcast.cli import main
from patchcast.data import Evaluate, open_images
from patchcast.data.decode import decode
from patchcast.data.transforms import denormalize
from patchcast.geometry import Grid
from patchcast.interop.imagegpt_weights import to_processor
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.run import open_run, start_run
from patchcast.runs.run_folder import claim
from patchcast.tokenizers.palette import Palette
from tests.imagegpt.parts import grays

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("few_digits", "_no_figures")
HALF = ((0.5,) * 3, (0.5,) * 3)
"""Mean and standard deviation of images whose black is -1 and white 1."""
SIZES = ((213, 320), (320, 213), (300, 300), (20, 30), (5, 3), (33, 32), (32, 32), (100, 37), (600, 450), (96, 130))
"""Rows and columns: landscape, portrait, square, tiny, the network's own and nearly so, tall, large."""


def photo(rows: int, cols: int, mode: str = "RGB") -> Image.Image:
    """Smooth parts, edges and noise."""
    random = np.random.default_rng(rows * cols)
    channels = len(Image.new(mode, (1, 1)).getbands())
    coarse = random.integers(0, 256, (rows // 7 + 2, cols // 7 + 2, channels), dtype=np.uint8)
    layers = [Image.fromarray(coarse[..., i]).resize((cols, rows), Image.Resampling.BICUBIC) for i in range(channels)]
    noisy = np.stack(layers, axis=-1).astype(int) + random.integers(-8, 9, (rows, cols, channels))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8).squeeze(), mode)


@pytest.fixture(scope="module")
def palette(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Palette]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Palette(torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def as_decoded(image: Image.Image, channels: int = 3) -> Tensor:
    """As a folder's image comes to training."""
    file = io.BytesIO()
    image.save(file, "png")
    return decode(file, channels)


def processor(found: Palette, grid: Grid, *, squash: bool = True, pillow: bool = False) -> Any:
    kind = transformers.ImageGPTImageProcessorPil if pillow else transformers.ImageGPTImageProcessor
    return kind(**{k: v for k, v in to_processor(found, grid, squash=squash).items() if k != "image_processor_type"})


def differing(found: Palette, pixels: Tensor, codes: Tensor) -> int:
    """Codes of other colors than the nearest. Two that are equally near up to rounding are the same: which one is taken
    hangs on the processor."""
    colors = found.colors.expand(-1, 3).double()
    wanted = pixels.flatten(1).T.double().expand(-1, 3) / 127.5 - 1
    distance = (wanted - colors[codes]).square().sum(dim=1)
    return int((distance > torch.cdist(wanted, colors).square().amin(dim=1) + 1e-5).sum())


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_codes_of_photographs_of_ten_sizes_are_those_of_training(palette: Palette, mode: str) -> None:
    """To the bit with transformers' own backend. Its Pillow backend rounds otherwise when it resizes: of 20 x 1,024
    codes 0 to 25 differ there, and all are the palette's for the pixels that it has made."""
    grid, evaluate = Grid(32, 32), Evaluate((32, 32), *HALF, squash=True)
    theirs, by_pillow = processor(palette, grid), processor(palette, grid, pillow=True)
    for rows, cols in SIZES:
        image = photo(rows, cols, mode)
        seen = evaluate(as_decoded(image))
        own = palette.encode(seen[None])
        pixels = denormalize(seen, *HALF)
        codes = torch.as_tensor(theirs(image, return_tensors="pt")["input_ids"])
        assert differing(palette, pixels, own[0]) == differing(palette, pixels, codes[0]) == 0

        codes = torch.as_tensor(by_pillow(image, return_tensors="pt")["input_ids"])
        resized = Image.fromarray(as_decoded(image).permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        assert differing(palette, pixels, codes[0]) == 0
        assert (own != codes).float().mean() < 0.05


def test_codes_of_real_photographs_are_those_of_training(palette: Palette, shared_data: Path) -> None:
    photos = open_images(str(shared_data / "trashnet"))
    evaluate, theirs = Evaluate((32, 32), *HALF, squash=True), processor(palette, Grid(32, 32))
    for place in range(0, len(photos), 60):
        seen = evaluate(photos[place][0])
        image = Image.fromarray(photos[place][0].permute(1, 2, 0).numpy())
        codes = torch.as_tensor(theirs(image, return_tensors="pt")["input_ids"])
        assert differing(palette, denormalize(seen, *HALF), codes[0]) == 0


def test_gray_palettes_and_sizes_that_are_no_squares() -> None:
    found, grid = grays(8), Grid(24, 32)
    theirs = processor(found, grid)
    for rows, cols in SIZES:
        image = photo(rows, cols, "L")
        seen = Evaluate(tuple(grid), (0.5,), (0.5,), squash=True)(as_decoded(image, channels=1))
        codes = torch.as_tensor(theirs(image, return_tensors="pt")["input_ids"])
        pixels = denormalize(seen, (0.5,), (0.5,)).expand(3, -1, -1)
        assert codes.shape == (1, grid.units)
        assert differing(found, pixels, codes[0]) == differing(found, pixels, found.encode(seen[None])[0]) == 0


def test_a_center_is_cut_where_transformers_can(palette: Palette) -> None:
    """Sizes whose longer side comes to a whole number: it rounds down elsewhere, and `Evaluate` to the nearest."""
    theirs = processor(palette, Grid(32, 32), squash=False)
    for rows, cols in ((300, 300), (64, 96), (480, 320), (5, 5)):
        image = photo(rows, cols)
        seen = Evaluate((32, 32), *HALF)(as_decoded(image))
        codes = torch.as_tensor(theirs(image, return_tensors="pt")["input_ids"])
        assert differing(palette, denormalize(seen, *HALF), codes[0]) == 0
    # No key of it cuts another shape: it takes images of the size itself then.
    other = processor(palette, Grid(16, 32), squash=False)
    image = photo(16, 32)
    seen = Evaluate((16, 32), *HALF)(as_decoded(image))
    codes = torch.as_tensor(other(image, return_tensors="pt")["input_ids"])
    assert differing(palette, denormalize(seen, *HALF), codes[0]) == 0


def test_a_run_on_photographs_exports_the_processor_of_its_own_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for place, (rows, cols) in enumerate(SIZES):
        photo(rows, cols, "RGBA" if place % 2 else "RGB").save(tmp_path / "photos" / f"{place}.png")
    command = ["pretrain", "--method", "imagegpt", "--model", "imagegpt", "--data", str(tmp_path / "photos")]
    command += ["--model_args", '{"depth": 1, "width": 8, "heads": 1}', "--codes", "16", "--workers", "0"]
    command += ["--steps", "1", "--batch_size", "2", "--image_size", "[16, 16]", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = open_run(tmp_path / "run")
    recipe, pretrainer = run.recipe, run.pretrainer
    assert recipe.crop_mode == "squash"
    theirs = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path / "run")
    for file in sorted((tmp_path / "photos").iterdir()):
        with file.open("rb") as opened:
            seen = run.evaluation(decode(opened, 3))
        codes = torch.as_tensor(theirs(Image.open(file), return_tensors="pt")["input_ids"])
        assert differing(pretrainer.backbone.tokenizer, denormalize(seen, *HALF), codes[0]) == 0


def test_configs_without_a_crop_mode_are_of_runs_that_cut_the_center(tmp_path: Path) -> None:
    recipe = Recipe(
        "imagegpt", "imagegpt", "digits", tmp_path / "run", model_args={"depth": 1, "width": 8, "heads": 1}, steps=2
    )
    assert start_run(recipe).recipe.crop_mode == "squash"
    assert start_run(dataclasses.replace(recipe, crop_mode="center")).recipe.crop_mode == "center"
    mae = dataclasses.replace(recipe, method="mae", model="test_vit", model_args={})
    assert start_run(mae).recipe.crop_mode == "center"

    now = start_run(recipe).recipe
    now.out.mkdir()
    written = "".join(line for line in yaml.safe_dump(now.to_dict()).splitlines(True) if "crop_mode" not in line)
    (now.out / "config.yaml").write_text(written)
    assert Resolved.load(now.out / "config.yaml").crop_mode == "center"
    given = dataclasses.replace(Recipe.load(now.out / "config.yaml"), out=tmp_path / "new")  # as `--config` gives it
    assert start_run(given).recipe.crop_mode == "center"
    resumed = start_run(recipe).recipe  # by the command that began it, in its folder
    assert claim(resumed) == "", "there is no checkpoint to resume from"
    with pytest.raises(ValueError, match="crop_mode is center there and squash here"):
        claim(now)
