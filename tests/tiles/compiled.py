"""Run by test_tiled.py in a process of its own: the shape checks of the test suite break `torch.compile`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from patchcast.backbones.tiled import Tiled
from tests.tiles.parts import canvas_of, tiled


def check(backbone: Tiled) -> None:
    images = torch.randn(2, 3, 64, 96)
    batch = canvas_of([torch.randn(3, 32, 96), torch.randn(3, 64, 60)], (64, 96))
    tiles, tile_grid = torch.randn(1, 2, 3, 3, 32, 48), torch.tensor([[[1, 3], [2, 1]]])
    visible = torch.stack([torch.randperm(24)[:8] for _ in images])

    def whole(images: Tensor) -> Tensor:
        return backbone.units(images)

    def padded(images: Tensor) -> Tensor:
        return backbone.units({"canvas": images, "size": batch["size"]})

    def causal(images: Tensor) -> Tensor:
        return backbone.forward_stages(backbone.embed(images), is_causal=True)

    def dropped(images: Tensor) -> Tensor:
        return backbone.forward_stages(backbone.keep(backbone.embed(images), visible))

    def listed(tiles: Tensor) -> Tensor:
        found = backbone.forward_tiles(tiles, tile_grid, depths=[1])
        return found.rows() + found.hidden[0].rows()

    ways = [(whole, images), (padded, batch["canvas"]), (causal, images), (dropped, images), (listed, tiles)]
    for way, given in ways:
        torch.compiler.reset()
        with torch.no_grad():
            compiled = torch.compile(way, fullgraph=True, backend="eager")(given)
            torch.testing.assert_close(compiled, way(given))


if __name__ == "__main__":
    torch.set_num_threads(1)
    check(tiled(sys.argv[1]))
    print(sys.argv[1], "compiled")
