"""How images become features: pooled, as tokens or as maps; whole, in tiles, or each tile as a separate image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from patchcast.backbones import Backbone
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.backbones.readout import mean, mean_std
from patchcast.backbones.tile_geometry import assemble, tile_crop, tiles_of
from patchcast.backbones.tiled import Tiled
from patchcast.data import Images
from patchcast.data.tiles import Fitted, FitTiles
from patchcast.evaluation.features import fingerprint
from patchcast.runs.network import is_run, open_network

Kind = Literal["pooled", "tokens", "maps"]


@dataclass(frozen=True)
class Extraction:
    """How images become features: a function for each image, and one for batches of images of the same size."""

    backbone: Backbone
    fit: Callable[[Tensor], Fitted]
    compute: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B rows cols D"]]
    description: str
    pool: Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B P"]] = mean


def open_extraction(
    source: str, tile_size: int | None, max_tiles: int, untrained: bool, readout: Readout, kind: Kind
) -> tuple[Extraction, int]:
    if readout != DEFAULT_READOUT and kind != "pooled":
        raise ValueError(f"--readout {readout} gives one feature per image, and --features {kind} one per unit")
    of_units = {"mean": mean, "mean_std": mean_std}
    if tile_size is not None and readout not in of_units:
        raise ValueError(f"--readout {readout} needs whole images; with --tile_size, use one of {', '.join(of_units)}")
    # A run knows its size; a timm model is built for whole images, or for tiles.
    size_given = {} if tile_size is None or is_run(source) else {"img_size": tile_size}
    network = open_network(source, untrained=untrained, **size_given)
    backbone, size, recipe = network.backbone, network.size, network.recipe
    if recipe is not None and tile_size is not None:
        if isinstance(backbone, Tiled):
            raise ValueError(
                f"the run in {source} has tiles of {recipe.tile_size} pixels already; leave --tile_size out"
            )
        if not backbone.takes_any_size and (tile_size, tile_size) != backbone.image_size:
            own = "{}x{}".format(*backbone.image_size)
            raise ValueError(f"this run takes images of {own}, so its tiles must be that; got --tile_size {tile_size}")
    if tile_size is None:
        evaluate = network.evaluate
        grid = backbone.grid(size)
        description = f"at {size[0]}x{size[1]}, {grid} units"
        if isinstance(backbone, Tiled):
            description += f", in tiles of {backbone.tile_size[0]}x{backbone.tile_size[1]} as one sequence"

        def units_of(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B rows cols D"]:
            if kind == "pooled":  # a map of one unit, the pooled feature
                return backbone.pool(images, readout)[:, None, None]
            return backbone.units(images).unflatten(1, grid)

        description += "" if readout == "mean" else f", readout {readout}"
        return Extraction(
            backbone, lambda image: Fitted(evaluate(image), size), units_of, description
        ), backbone.channels
    tile = (tile_size, tile_size)
    description = f"each of up to {max_tiles} tiles of {tile_size}x{tile_size} by itself"
    fit = FitTiles(tile, max_tiles, mean=network.mean, std=network.std)
    description += "" if readout == "mean" else f", readout {readout}"
    compute = partial(units_apart, backbone, tile=tile)
    return Extraction(backbone, fit, compute, description, of_units[readout]), backbone.channels


def units_apart(
    backbone: Backbone, images: Float[Tensor, "B C H W"], tile: tuple[int, int]
) -> Float[Tensor, "B rows cols D"]:
    """The units of an image as a map, with each tile run as a separate image.

    >>> import torch
    >>> from patchcast.backbones import wrap
    >>> units_apart(wrap("test_vit", img_size=32), torch.zeros(2, 3, 64, 96), (32, 32)).shape
    torch.Size([2, 4, 6, 64])
    """
    tiles = tiles_of(images.shape[-2:], tile)
    units = backbone.units(tile_crop(images, tile).flatten(0, 1)).unflatten(1, backbone.grid(tile))
    maps = units.movedim(-1, 1).unflatten(0, (len(images), tiles.units))
    return assemble(maps, tiles).movedim(1, -1)


def shaped(
    units: Float[Tensor, "rows cols D"], size: tuple[int, int], method: Extraction, kind: Kind
) -> Float[Tensor, "..."]:
    """The units that contain pixels of the image, in the requested form."""
    stride = method.backbone.stride
    real = units[: -(-size[0] // stride[0]), : -(-size[1] // stride[1])]
    if kind == "pooled":
        return method.pool(real.flatten(0, 1)[None])[0]
    return (real.flatten(0, 1) if kind == "tokens" else real.permute(2, 0, 1)).contiguous()


def depends_on(method: Extraction, images: Images, images_per_part: int, kind: Kind) -> dict[str, Any]:
    """All that the features depend on, to check that a resumed command computes the same."""
    names = [images.store.path(int(position)) for position in images.positions]
    return {
        "weights": fingerprint(method.backbone),
        "how": method.description,
        "kind": kind,
        "images": fingerprint(names),
        "images_per_part": images_per_part,
    }
