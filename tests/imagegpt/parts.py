"""Small ImageGPTs for the tests beside this file."""

from __future__ import annotations

import torch

from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.geometry import Grid
from patchcast.methods.imagegpt import imagegpt, imagegpt_masked
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.palette import Palette

SQUARE = Grid(4, 4)


def grays(k: int = 8) -> Palette:
    return Palette(torch.linspace(-1, 1, k)[:, None])


def network(grid: Grid = SQUARE, k: int = 8, *, causal: bool = True, bias: bool = False, depth: int = 2) -> ImageGPT:
    return ImageGPT(grid, k, depth=depth, width=32, heads=4, causal=causal, bias=bias)


def causal(grid: Grid = SQUARE, k: int = 8, *, bias: bool = False) -> Pretrainer:
    return imagegpt(ImageGPTBackbone(network(grid, k, bias=bias), grays(k), channels=1))


def masked(grid: Grid = SQUARE, k: int = 8) -> Pretrainer:
    return imagegpt_masked(ImageGPTBackbone(network(grid, k, causal=False), grays(k), channels=1))
