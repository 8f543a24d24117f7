"""Sine-cosine positions as the starting values of a learnable table."""

from __future__ import annotations

from math import atanh

import torch
from torch import nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.tiled import Tiled
from patchcast.positions import sincos_positions


@torch.no_grad()
def start_from_sincos(backbone: Backbone) -> bool:
    """Initialize the learnable position table of a backbone with sine-cosine positions, and zeros for prefix tokens.

    A tiled backbone starts with the mean of the positions in the tile and those in the whole image.

    MAE and I-JEPA train with these (He et al. 2022, appendix A.1). Only for random weights: a trained table would be
    overwritten. Call it before a method is built over the backbone, because a teacher is a copy of it.

    >>> from patchcast.backbones import wrap
    >>> backbone = wrap("test_vit", img_size=64)
    >>> start_from_sincos(backbone), backbone.model.pos_embed[0, 1, :2].tolist()
    (True, [0.0, 0.0])

    Returns:
        whether the model has such a table, with one row for each unit, after those of prefix tokens.
    """
    if isinstance(backbone, Tiled):
        start_tiles_from_sincos(backbone)
        backbone = backbone.tile
    grid = backbone.grid(backbone.image_size)
    table = getattr(backbone.model, "pos_embed", None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or table.shape[2] % 4:
        return False
    prefix = table.shape[1] - grid.units
    if prefix not in (0, getattr(backbone.model, "num_prefix_tokens", 0)):  # a table of a finer grid, for example
        return False
    table.zero_()
    table[0, prefix:] = sincos_positions(grid, table.shape[2])
    return True


def start_tiles_from_sincos(backbone: Tiled) -> None:
    """Positions over the whole image in the table of tiled token positions, with the gate half open."""
    tokens = backbone.model.tokens
    if tokens is not None and backbone.embed_width % 4 == 0:
        whole = sincos_positions(backbone.grid(backbone.image_size), backbone.embed_width)
        tokens.positions.zero_()
        tokens.positions[:, :, backbone.tile_prefix :] = backbone.by_tile(whole[None], backbone.most)[0].unflatten(
            0, backbone.most
        )
        tokens.gate.fill_(atanh(0.5))
