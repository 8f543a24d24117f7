"""Cut large images into tiles, and fit images of any shape onto a canvas of whole tiles, keeping the aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from patchcast.backbones.tile_geometry import assemble, tile_crop, tiles_of
from patchcast.data.transforms import Normalize
from patchcast.geometry import Grid

__all__ = [
    "FitTiles",
    "Fitted",
    "assemble",
    "best_canvas",
    "fitted_size",
    "list_tiles",
    "resize_with_padding",
    "stack",
    "tile_crop",
    "tiles_of",
]


def best_canvas(size: tuple[int, int], tile: tuple[int, int], most: int, *, enlarge: bool = False) -> Grid:
    """The grid of at most `most` tiles that fits an image best, keeping the aspect ratio.

    Among the canvases that do not shrink the image, choose the one that enlarges it least (or most, if `enlarge`). If
    there is none, choose the one that shrinks it least. Ties go to the fewest tiles.

    >>> best_canvas((300, 800), (224, 224), 16), best_canvas((300, 800), (224, 224), 16, enlarge=True)
    (Grid(rows=2, cols=4), Grid(rows=2, cols=6))
    >>> best_canvas((3000, 2000), (224, 224), 6)
    Grid(rows=3, cols=2)

    Args:
        size: (height, width) of the image in pixels.
        tile: height and width of a tile in pixels.
        most: maximum number of tiles.
    """
    if most < 1 or min(size) < 1 or min(tile) < 1:
        raise ValueError(f"needs an image, tiles and a number of tiles; got {size}, {tile} and {most}")
    height, width = size
    grids = [Grid(rows, cols) for rows in range(1, most + 1) for cols in range(1, most // rows + 1)]
    # The scale of each times height * width: whole numbers, so that what is alike is found to be.
    scale = {grid: min(grid.rows * tile[0] * width, grid.cols * tile[1] * height) for grid in grids}
    enough = [area for area in scale.values() if area >= height * width]
    chosen = (max(enough) if enlarge else min(enough)) if enough else max(scale.values())
    return min((grid for grid in grids if scale[grid] == chosen), key=lambda grid: grid.units)


class Fitted(NamedTuple):
    """An image in the upper left corner of a canvas, and its (height, width) on it."""

    canvas: Num[Tensor, "C H W"]
    size: tuple[int, int]


def fitted_size(size: tuple[int, int], canvas: tuple[int, int], tile: tuple[int, int] | None = None) -> tuple[int, int]:
    """The (height, width) of an image on a canvas: as large as fits with the aspect ratio kept, rounded down.

    >>> fitted_size((300, 800), (448, 1344)), fitted_size((300, 800), (448, 1344), tile=(224, 224))
    ((448, 1194), (300, 800))

    Args:
        tile: do not enlarge beyond this (height, width); None: fill the canvas.
    """
    (height, width), (most_down, most_right) = size, canvas
    if tile is not None:
        most_down, most_right = min(most_down, max(height, tile[0])), min(most_right, max(width, tile[1]))
    down, right = most_down / height, most_right / width  # as floats, which torchtune has, for the same rounding
    if right < down:
        return max(1, min(int(height * right), most_down)), most_right
    return most_down, max(1, min(int(width * down), most_right))


def resize_with_padding(
    image: Num[Tensor, "C H W"],
    canvas: tuple[int, int],
    *,
    tile: tuple[int, int] | None = None,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
) -> Fitted:
    """Fit an image onto a canvas, keeping the aspect ratio, with zeros to the right and below.

    >>> fitted = resize_with_padding(torch.ones(3, 100, 50), (64, 64))
    >>> fitted.canvas.shape, fitted.size, fitted.canvas[0, 0, 31:33].round().tolist()
    (torch.Size([3, 64, 64]), (64, 32), [1.0, 0.0])

    Args:
        canvas: (height, width) in pixels.
        tile: do not enlarge a small image beyond this (height, width); None: fill the canvas.
        interpolation: of torchvision, with antialiasing.
    """
    height, width = fitted_size((image.shape[-2], image.shape[-1]), canvas, tile)
    resized = vision.resize(image, [height, width], interpolation=interpolation, antialias=True)
    return Fitted(F.pad(resized, (0, canvas[1] - width, 0, canvas[0] - height)), (height, width))


class FitTiles:
    """Turn an image of any size into a normalized one on the canvas of tiles that fits it best.

    >>> fit = FitTiles((224, 224), 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> fitted = fit(torch.zeros(3, 384, 512, dtype=torch.uint8))
    >>> fitted.canvas.shape, fitted.size, fitted.canvas[0, 0, 0].item(), fitted.canvas[0, -1, -1].item()
    (torch.Size([3, 448, 448]), (336, 448), -1.0, 0.0)

    Args:
        tile: height and width of a tile in pixels.
        most: maximum number of tiles per image.
        mean: of each channel, white being 1.
        std: of each channel.
        enlarge: fill the canvas; otherwise an image is enlarged only up to the size of a tile.
        interpolation: of torchvision, with antialiasing, in uint8.
        black: pad with black, as torchtune does, instead of the mean color.
    """

    def __init__(
        self,
        tile: tuple[int, int],
        most: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        enlarge: bool = False,
        interpolation: InterpolationMode = InterpolationMode.BICUBIC,
        black: bool = False,
    ) -> None:
        self.tile, self.most, self.enlarge = tile, most, enlarge
        self.interpolation, self.black = interpolation, black
        self.normalize = Normalize(mean, std)

    def __call__(self, image: UInt8[Tensor, "C H W"]) -> Fitted:
        grid = best_canvas((image.shape[-2], image.shape[-1]), self.tile, self.most, enlarge=self.enlarge)
        canvas = (grid.rows * self.tile[0], grid.cols * self.tile[1])
        limit = None if self.enlarge else self.tile
        padded, (height, width) = resize_with_padding(image, canvas, tile=limit, interpolation=self.interpolation)
        normal = self.normalize(padded)
        if not self.black:
            normal[:, height:] = 0.0
            normal[:, :, width:] = 0.0
        return Fitted(normal, (height, width))


def stack(fitted: Sequence[Fitted]) -> dict[str, Tensor]:
    """Stack images on canvases of different sizes, each in the upper left corner of a canvas that holds them all.

    >>> batch = stack([Fitted(torch.ones(3, 32, 64), (32, 50)), Fitted(torch.ones(3, 64, 32), (64, 32))])
    >>> batch["canvas"].shape, batch["size"].tolist()
    (torch.Size([2, 3, 64, 64]), [[32, 50], [64, 32]])
    """
    height, width = (max(image.canvas.shape[dim] for image in fitted) for dim in (-2, -1))
    canvases = [
        F.pad(image.canvas, (0, width - image.canvas.shape[-1], 0, height - image.canvas.shape[-2])) for image in fitted
    ]
    return {"canvas": torch.stack(canvases), "size": torch.tensor([image.size for image in fitted])}


def list_tiles(
    fitted: Sequence[Fitted], tile: tuple[int, int]
) -> tuple[Float[Tensor, "B T C h w"], Int[Tensor, "B 2"]]:
    """Stack images as lists of tiles, shorter lists padded with zeros; returns them with each image's tile grid.

    >>> wide, square = Fitted(torch.ones(3, 32, 64), (32, 64)), Fitted(torch.ones(3, 32, 32), (32, 32))
    >>> tiles, grids = list_tiles([wide, square], (32, 32))
    >>> tiles.shape, grids.tolist()
    (torch.Size([2, 2, 3, 32, 32]), [[1, 2], [1, 1]])
    """
    cut = [tile_crop(image.canvas, tile) for image in fitted]
    longest = max(len(tiles_of_one) for tiles_of_one in cut)
    tiles = torch.stack([F.pad(tiles_of_one, (0, 0) * 3 + (0, longest - len(tiles_of_one))) for tiles_of_one in cut])
    return tiles, torch.tensor([tuple(tiles_of(image.canvas.shape[-2:], tile)) for image in fitted])
