"""Cutting, fitting and putting together: torchtune's results on random sizes, and where ours differ."""

from __future__ import annotations

import random

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode

from patchcast.backbones import Grid
from patchcast.data.tiles import (
    FitTiles,
    assemble,
    best_canvas,
    fitted_size,
    list_tiles,
    resize_with_padding,
    stack,
    tile_crop,
)


def sizes(count: int, largest: int, seed: int = 0) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    return [(chance.randint(8, largest), chance.randint(8, largest)) for _ in range(count)]


def test_the_best_canvas_is_torchtunes() -> None:
    theirs = pytest.importorskip("torchtune.modules.transforms.vision_utils.get_canvas_best_fit", reason="peers extra")
    special = [(224, 224), (448, 224), (100, 100), (1, 3000), (672, 448), (300, 800), (2240, 2240), (336, 512)]
    for most in (1, 4, 7, 16):
        possible = torch.tensor(theirs.find_supported_resolutions(most, 224))
        assert {(h // 224, w // 224) for h, w in possible.tolist()} == {
            (rows, cols) for rows in range(1, most + 1) for cols in range(1, most + 1) if rows * cols <= most
        }
        for size in [*sizes(150, 3000, seed=most), *special]:
            for enlarge in (False, True):
                wanted = theirs.get_canvas_best_fit(torch.empty(1, *size, device="meta"), possible, enlarge)
                found = best_canvas(size, (224, 224), most, enlarge=enlarge)
                assert (found.rows * 224, found.cols * 224) == wanted, (size, most, enlarge)


def test_resizing_with_padding_is_torchtunes() -> None:
    theirs = pytest.importorskip("torchtune.modules.transforms.vision_utils.resize_with_pad", reason="peers extra")
    for size, canvas in zip(sizes(200, 90), sizes(200, 90, seed=1), strict=True):
        image = torch.rand(3, *size)
        for tile in (None, (32, 32)):
            found = resize_with_padding(image, canvas, tile=tile, interpolation=InterpolationMode.BILINEAR)
            limit = None if tile is None else tile[0]
            wanted = theirs.resize_with_pad(image, canvas, InterpolationMode.BILINEAR, limit)
            assert torch.equal(found.canvas, wanted), (size, canvas, tile)
            assert found.canvas[:, found.size[0] :].abs().sum() == found.canvas[:, :, found.size[1] :].abs().sum() == 0


def test_cropping_tiles_is_torchtunes() -> None:
    theirs = pytest.importorskip("torchtune.modules.transforms.vision_utils.tile_crop", reason="peers extra")
    for rows, cols in [(1, 1), (1, 4), (3, 2), (5, 3)]:
        image = torch.randint(256, (3, rows * 16, cols * 16), dtype=torch.uint8)
        tiles = tile_crop(image, (16, 16))
        assert torch.equal(tiles, theirs.tile_crop(image, 16))
        assert torch.equal(assemble(tiles, Grid(rows, cols)), image)
    with pytest.raises(ValueError, match="need H and W divisible by 16 and 16; got 17x32"):
        tile_crop(torch.zeros(3, 17, 32), (16, 16))


@pytest.mark.parametrize("enlarge", [False, True])
def test_the_whole_transform_is_torchtunes(enlarge: bool) -> None:
    """But for resizing in uint8 (half a level), and for normalizing before padding, where `black` is not asked for."""
    theirs = pytest.importorskip("torchtune.models.clip", reason="peers extra")
    import PIL.Image

    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    transform = theirs.CLIPImageTransform(
        image_mean=list(mean), image_std=list(std), tile_size=32, max_num_tiles=6, dtype=torch.float32,
        resize_to_max_canvas=enlarge,
    )  # fmt: skip
    ours = {
        black: FitTiles((32, 32), 6, mean=mean, std=std, enlarge=enlarge, interpolation=InterpolationMode.BILINEAR,
                        black=black)
        for black in (True, False)
    }  # fmt: skip
    for size in sizes(40, 150):
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        wanted = transform({"image": PIL.Image.fromarray(image.permute(1, 2, 0).numpy())})
        found = {black: fit(image) for black, fit in ours.items()}
        tiles, tile_grid = list_tiles([found[True]], (32, 32))
        assert tile_grid[0].tolist() == wanted["aspect_ratio"].tolist()
        assert (tiles[0] - wanted["image"]).abs().max() < 1.01 / 255 / min(std)
        height, width = found[False].size
        assert torch.equal(found[False].canvas[:, :height, :width], found[True].canvas[:, :height, :width])
        assert found[False].canvas[:, height:].abs().sum() == 0


def test_very_thin_images_keep_a_pixel() -> None:
    """torchtune rounds down to none, which cannot be resized to."""
    assert fitted_size((1000, 2), (224, 224)) == (224, 1)
    assert resize_with_padding(torch.ones(3, 2, 1000), (32, 32)).size == (1, 32)


def test_rectangular_tiles() -> None:
    assert best_canvas((300, 800), (100, 200), 12) == (3, 4)
    fit = FitTiles((100, 200), 12, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert fit(torch.zeros(3, 290, 790, dtype=torch.uint8)).canvas.shape == (3, 300, 800)
    with pytest.raises(ValueError, match="needs an image, tiles and a number of tiles"):
        best_canvas((300, 800), (100, 200), 0)


def test_a_batch_of_different_canvases() -> None:
    fit = FitTiles((16, 16), 4, mean=(0.5,), std=(0.5,))
    fitted = [fit(torch.full((1, *size), 255, dtype=torch.uint8)) for size in [(16, 60), (40, 20), (9, 16)]]
    batch = stack(fitted)
    assert batch["canvas"].shape == (3, 1, 32, 64)
    for image, canvas, (height, width) in zip(fitted, batch["canvas"], batch["size"].tolist(), strict=True):
        assert (height, width) == image.size
        inside = torch.zeros(32, 64, dtype=torch.bool)
        inside[:height, :width] = True
        assert (canvas[0][inside] == 1).all()
        assert (canvas[0][~inside] == 0).all()
    tiles, tile_grid = list_tiles(fitted, (16, 16))
    assert tiles.shape == (3, 4, 1, 16, 16)
    assert tile_grid.tolist() == [[1, 4], [2, 1], [1, 1]]
