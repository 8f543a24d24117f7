"""Run by test_compiled.py in a process of its own: the shape checks of the test suite break `torch.compile`."""

from __future__ import annotations

import doctest
import importlib
import sys

import torch
from torch import Tensor

from patchcast.backbones import wrap
from tests import methods
from tests.backbones.zoo import able, assert_same, images_for, small
from tests.tiles.parts import canvas_of, tiled


def check_backbone(name: str) -> None:
    backbone = small(name)
    images = images_for(backbone)
    grid = backbone.grid(images)
    length = grid.units + (backbone.embed(images).prefix if name in able("attend") else 0)
    can_see = torch.ones(length, length, dtype=torch.bool).tril()
    visible = torch.stack([torch.randperm(grid.units)[: grid.units // 2] for _ in images])
    is_hidden = torch.zeros(len(images), *grid, dtype=torch.bool)
    is_hidden[:, 0, 0] = True

    def masked(images: Tensor) -> Tensor:
        tokens = backbone.embed(images)
        return backbone.split(backbone.forward_stages(tokens, can_see=can_see), tokens)[1]

    def dropped(images: Tensor) -> Tensor:
        tokens = backbone.keep(backbone.embed(images), visible)
        return backbone.split(backbone.forward_stages(tokens), tokens)[1]

    def replaced(images: Tensor) -> Tensor:
        tokens = backbone.embed(images, is_hidden=is_hidden)
        return backbone.split(backbone.forward_stages(tokens), tokens)[1]

    ways = [backbone, replaced, *[masked] * (name in able("attend")), *[dropped] * (name in able("drop"))]
    for way in ways:
        torch.compiler.reset()
        with torch.no_grad():
            assert_same(torch.compile(way, fullgraph=True, backend="eager")(images), way(images))


def check_tiles(family: str) -> None:
    backbone = tiled(family)
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
        out = backbone.forward_tiles(tiles, tile_grid, depths=[1])
        return out.rows() + out.hidden[0].rows()

    ways = [(whole, images), (padded, batch["canvas"]), (causal, images), (dropped, images), (listed, tiles)]
    for way, given in ways:
        torch.compiler.reset()
        with torch.no_grad():
            compiled = torch.compile(way, fullgraph=True, backend="eager")(given)
            torch.testing.assert_close(compiled, way(given))


def check_pretrainer(method: str) -> None:
    """It draws its own plans, for batches of any size."""
    torch.manual_seed(0)
    torch.compiler.reset()
    pretrainer = methods.small(method, wrap("test_vit", img_size=64, depth=2))
    batches = [torch.randn(count, 3, 64, 64) for count in (2, 3, 4)]  # from the second on, for any size
    losses = []
    for compiled in (False, True):
        if compiled:
            pretrainer.compile(backend="eager")
        torch.manual_seed(1)
        losses.append([pretrainer(images).loss for images in batches])
    torch.testing.assert_close(losses[1], losses[0])


def check_examples(module: str) -> None:
    """Those of a module's docstrings that compile: `examine` runs a method in every way of training it."""
    torch.compiler.reset()
    assert doctest.testmod(importlib.import_module(module)).failed == 0


CHECKS = {"examples": check_examples, "backbone": check_backbone, "tiles": check_tiles, "pretrainer": check_pretrainer}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:]:
        kind, _, name = each.partition(":")
        CHECKS[kind](name)
        print(each, flush=True)
