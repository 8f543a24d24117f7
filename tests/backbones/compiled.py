"""Run by test_processes.py in a process of its own: the shape checks of the test suite break `torch.compile`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tests.backbones.zoo import able, assert_same, images_for, small


def check(name: str) -> None:
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[1:]:
        check(each)
        print(each, "compiled", flush=True)
