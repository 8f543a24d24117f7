"""`Tiled`: any backbone of one sequence, run over all tiles of an image too large for it, in one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from patchcast.backbones import sequence
from patchcast.backbones.backbone import Backbone, CannotError, ImageBatch, Tokens, pixels_of
from patchcast.backbones.tile_geometry import Places, tile_crop, tiles_of
from patchcast.backbones.tile_positions import TilePositions, TokenPositions
from patchcast.geometry import Grid, Layout, take, to_rows


@dataclass(frozen=True)
class TileLayout:
    """How the tokens of a sequence belong to tiles; the prefix tokens of all tiles come first.

    Attributes:
        tiles: rows and columns of tiles.
        places: the row and column of each tile in its image.
        layout: of the patches of one tile.
        kwargs: keyword arguments of the block calls for the tokens of one tile.
        own: index of each token within its tile.
        tile: index of its tile.
        can_see: the attention mask; "earlier" for the causal mask.
    """

    tiles: Grid
    places: Places
    layout: Layout
    kwargs: Mapping[str, Any]
    own: Int[Tensor, "b L"]
    tile: Int[Tensor, "b L"]
    can_see: Bool[Tensor, "*B L L"] | Literal["earlier"] | None = None


@dataclass(frozen=True)
class TileFeatures:
    """Features tile by tile, for N images per sample.

    Attributes:
        prefix: of the class (and register) tokens of each tile; the class token is the first.
        units: of the units of each tile, row by row.
        hidden: hidden states at the requested depths, without the final norm.
    """

    prefix: Float[Tensor, "B N T R D"]
    units: Float[Tensor, "B N T U D"]
    hidden: tuple[TileFeatures, ...] = ()

    def rows(self, *, class_last: bool = False) -> Float[Tensor, "B N T L D"]:
        """All tokens of each tile, with the class token before or after its units."""
        return torch.cat([self.units, self.prefix] if class_last else [self.prefix, self.units], dim=3)


class TiledModel(nn.Module):
    """The modules of a tiled backbone: the backbone of one tile, and the positions of tiles."""

    def __init__(
        self,
        tile: sequence.Sequence,
        before: TilePositions | None,
        tokens: TokenPositions | None,
        after: TilePositions | None,
    ) -> None:
        super().__init__()
        self.tile, self.before, self.tokens, self.after = tile, before, tokens, after

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.tile.model.set_grad_checkpointing(enable)


class Tiled(Backbone):
    """A backbone for large images: they are cut into tiles, and all tiles run as one sequence.

    Each tile is embedded as a separate image with its own class token. Then the tokens of all tiles go through the
    blocks together. For plans, an image is one grid of units, row by row over all tiles, so every method works on
    tiles as it does on images. In the sequence, the prefix tokens of all tiles come first.

    Images of different sizes come on canvases: `{"canvas": (B, C, H, W), "size": (B, 2)}`, as `patchcast.data.tiles`
    makes them. The part of a canvas outside the image (whole tiles, or some of their units) is padding: no token
    attends to it, and its features are zero. For samples of several images, as lists of tiles, see `forward_tiles`.
    Let "size" stay on the CPU: plans are drawn from it, and reading it from a GPU would make the GPU wait.

    >>> from patchcast.backbones import wrap
    >>> backbone = Tiled(wrap("test_vit", img_size=32), Grid(2, 3))
    >>> backbone.units(torch.zeros(1, 3, 64, 96)).shape, backbone.grid((32, 96))
    (torch.Size([1, 24, 64]), Grid(rows=2, cols=6))

    Args:
        backbone: of one tile: a plain vision transformer, or one with rotary or relative positions.
        grid: maximum number of tiles of an image, in rows and columns, for which positions are learned.
        before: add `TilePositions` to the patches of each tile.
        tokens: mix `TokenPositions` of each tile into those that the backbone adds in every tile.
        after: add `TilePositions` to the features.
        sees_padding: let tokens attend to padding, as torchtune's tiled transformer does.
    Raises:
        CannotError: if the backbone cannot run over several tiles in one sequence.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: Grid | tuple[int, int],
        *,
        before: bool = True,
        tokens: bool = True,
        after: bool = True,
        sees_padding: bool = False,
    ) -> None:
        if not isinstance(backbone, sequence.Sequence) or not backbone.takes_tiles:
            raise CannotError(
                f"{backbone.name} cannot run over the tokens of several tiles in one sequence; plain vision "
                "transformers (VisionTransformer, Eva, NaFlexVit, Beit, VisionTransformerRelPos) can"
            )
        grid, width = Grid(*grid), backbone.embed_width
        if min(grid) < 1:
            raise ValueError(f"an image has one tile at least; got a grid of {grid}")
        tile_units, prefix = backbone.grid(backbone.image_size), backbone.features_prefix
        super().__init__(
            TiledModel(
                backbone,
                TilePositions(grid, width) if before else None,
                TokenPositions(grid, tokens=prefix + tile_units.units, width=width) if tokens else None,
                TilePositions(grid, width) if after else None,
            )
        )
        self.most, self.sees_padding = grid, sees_padding
        self.tile_size, self.tile_units, self.tile_prefix = backbone.image_size, tile_units, prefix
        self.can = backbone.can
        self.width, self.embed_width, self.channels = backbone.width, width, backbone.channels
        self.stride, self.pixels_stay_in_unit = backbone.stride, backbone.pixels_stay_in_unit
        self.image_size = (grid.rows * self.tile_size[0], grid.cols * self.tile_size[1])
        self.features_prefix = prefix * grid.units

    @property
    def tile(self) -> sequence.Sequence:
        """The backbone of one tile."""
        return self.model.tile

    @property
    def name(self) -> str:
        return f"tiled {self.tile.name}"

    def block_modules(self) -> list[nn.Module]:
        return self.tile.block_modules()

    def unused(self) -> list[str]:
        return [f"tile.model.{name}" for name in self.tile.unused()]

    def not_in_features(self) -> list[str]:
        return [f"tile.model.{name}" for name in self.tile.not_in_features()]

    def prefix_only(self) -> list[str]:
        return [f"tile.model.{name}" for name in self.tile.prefix_only()]

    # ---- images: their tiles and units -------------------------------------------------------------

    def grid(self, images: ImageBatch | tuple[int, int]) -> Grid:
        """The grid of units of these images or canvases, or of this (height, width).

        Raises:
            ValueError: if the channels are not the model's, tiles do not divide the size, or there are too many tiles.
        """
        if not isinstance(images, tuple):
            pixels = pixels_of(images)
            if pixels.shape[1] != self.channels:
                raise ValueError(f"{self.name} takes {self.channels} channels; got {pixels.shape[1]}")
            images = (pixels.shape[-2], pixels.shape[-1])
        self.check_tiles(tiles := tiles_of(images, self.tile_size))
        return Grid(tiles.rows * self.tile_units.rows, tiles.cols * self.tile_units.cols)

    def check_tiles(self, tiles: Grid) -> None:
        if tiles.rows > self.most.rows or tiles.cols > self.most.cols:
            raise ValueError(f"this {self.name} has positions for {self.most} tiles; an image has {tiles}")

    def grid_of_each(self, images: ImageBatch) -> list[Grid] | None:
        if isinstance(images, Tensor):
            return None
        if self.sees_padding:
            raise CannotError(
                "sees_padding=True does not work with images of different sizes: no plan can include padding"
            )
        self.check_sizes(images)
        down, right = self.stride
        return [Grid(-(-height // down), -(-width // right)) for height, width in images["size"].tolist()]

    def check_sizes(self, images: Mapping[str, Tensor]) -> None:
        size, (height, width) = images["size"], images["canvas"].shape[-2:]
        if size.shape != (len(images["canvas"]), 2):
            raise ValueError(
                f"size gives (height, width) of each of {len(images['canvas'])} images; got {tuple(size.shape)}"
            )
        if bool((size < 0).any()) or bool((size > size.new_tensor([height, width])).any()):
            raise ValueError(f"the images are larger than their canvas of {height}x{width}: {size.tolist()}")

    def valid_units(self, images: Mapping[str, Tensor], grid: Grid) -> Bool[Tensor, "B N"]:
        """True where a unit holds a pixel of its image."""
        size = images["size"]
        if size.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to wait
            self.check_sizes(images)
        size = size.to(images["canvas"].device, non_blocking=True)
        rows = torch.arange(grid.rows, device=size.device) * self.stride[0] < size[:, :1]
        cols = torch.arange(grid.cols, device=size.device) * self.stride[1] < size[:, 1:]
        return (rows[:, :, None] & cols[:, None, :]).flatten(1)

    # ---- from tiles to one sequence ---------------------------------------------------------------------------------

    def to_patches(self, images: ImageBatch) -> Tokens:
        grid = self.grid(images)
        tiles = Grid(grid.rows // self.tile_units.rows, grid.cols // self.tile_units.cols)
        pixels = pixels_of(images)
        places, is_valid = Places.on(tiles, pixels.device), None
        if not isinstance(images, Tensor):
            is_valid = self.valid_units(images, grid)
            places = replace(places, is_real=self.by_tile(is_valid[..., None], tiles).any(dim=2)[..., 0])
        return self.cut_patches(tile_crop(pixels, self.tile_size), tiles, places, is_valid)

    def cut_patches(
        self, tiles: Float[Tensor, "B T C h w"], grid: Grid, places: Places, is_valid: Bool[Tensor, "B N"] | None
    ) -> Tokens:
        """The patches of all tiles, row by row over the grid of tiles."""
        patches = self.tile.to_patches(tiles.flatten(0, 1))
        x = to_rows(patches.x, patches.layout).unflatten(0, tiles.shape[:2])
        cut = TileLayout(grid, places, patches.layout, {}, *self.index(grid, tiles.device))
        units = Grid(grid.rows * self.tile_units.rows, grid.cols * self.tile_units.cols)
        return Tokens(self.by_row(x, grid), units, block_kwargs={"cut": cut}, is_valid=is_valid)

    def add_positions(self, patches: Tokens) -> Tokens:
        cut, model = patches.block_kwargs["cut"], self.model
        x = self.by_tile(patches.x, cut.tiles)
        if model.before is not None:
            x = x + model.before(cut.places)[:, :, None]
        rows = x.flatten(0, 1)
        alone = Tokens(
            rows if cut.layout == "NLC" else rows.unflatten(1, self.tile_units), self.tile_units, layout=cut.layout
        )
        placed = self.tile.place(alone)
        x = placed.x.unflatten(0, x.shape[:2])
        if model.tokens is not None:
            x = x + model.tokens(cut.places, self.local_positions())
        x = self.tile.pre_norm(x)
        prefix, units = x[:, :, : self.tile_prefix], x[:, :, self.tile_prefix :]
        return patches.with_(
            x=torch.cat([prefix.flatten(1, 2), self.by_row(units, cut.tiles)], dim=1),
            prefix=self.tile_prefix * cut.tiles.units,
            block_kwargs={"cut": replace(cut, kwargs=placed.block_kwargs)},
        )

    def local_positions(self) -> Float[Tensor, "L D"] | None:
        """The position table of the backbone, prefix tokens first; None if it has none."""
        table = getattr(self.tile.model, "pos_embed", None)
        if not isinstance(table, Tensor) or table.ndim != 3:
            return None
        missing = self.tile_prefix + self.tile_units.units - table.shape[1]  # rows of prefix tokens, in some models
        return torch.cat([table.new_zeros(missing, table.shape[2]), table[0]])

    def by_row(self, x: Shaped[Tensor, "B T U D"], tiles: Grid) -> Shaped[Tensor, "B N D"]:
        """Reorder from tile by tile to row by row over all tiles."""
        x = x.unflatten(2, self.tile_units).unflatten(1, tiles)
        return x.transpose(2, 3).flatten(1, 4)

    def by_tile(self, x: Shaped[Tensor, "B N D"], tiles: Grid) -> Shaped[Tensor, "B T U D"]:
        """Reorder from row by row over all tiles to tile by tile."""
        x = x.unflatten(1, (tiles.rows, self.tile_units.rows, tiles.cols, self.tile_units.cols))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def index(self, tiles: Grid, device: torch.device) -> tuple[Int[Tensor, "1 L"], Int[Tensor, "1 L"]]:
        """For each token of the sequence, its index within its tile, and the index of its tile."""
        count, units = tiles.units, self.tile_units.units
        tile = torch.arange(count, device=device)[:, None]
        own = torch.arange(self.tile_prefix, device=device).repeat(count)
        local = torch.arange(units, device=device).expand(count, -1) + self.tile_prefix

        def row_by_row(x: Tensor) -> Tensor:
            return self.by_row(x[None, ..., None], tiles)[0, :, 0]

        in_tile = torch.cat([tile.expand(-1, self.tile_prefix).flatten(), row_by_row(tile.expand(-1, units))])
        return torch.cat([own, row_by_row(local)])[None], in_tile[None]

    # ---- one sequence through the blocks ----------------------------------------------------------------------------

    def select(self, tokens: Tokens, visible: Int[Tensor, "B V"]) -> Tokens:
        cut, prefix = tokens.block_kwargs["cut"], tokens.prefix
        front = torch.arange(prefix, device=visible.device).expand(len(visible), -1)
        kept = torch.cat([front, visible + prefix], dim=1)
        own, tile = (index.expand(len(visible), -1).gather(1, kept) for index in (cut.own, cut.tile))
        return tokens.with_(
            x=take(tokens.x, kept),
            visible=visible,
            is_valid=None if tokens.is_valid is None else tokens.is_valid.gather(1, visible),
            block_kwargs={"cut": replace(cut, own=own, tile=tile)},
        )

    def mask_attention(self, tokens: Tokens, can_see: Bool[Tensor, "*B L L"] | None) -> Tokens:
        cut = replace(tokens.block_kwargs["cut"], can_see="earlier" if can_see is None else can_see)
        return tokens.with_(block_kwargs={"cut": cut})

    def validity(self, tokens: Tokens) -> Bool[Tensor, "B L"] | None:
        if tokens.is_valid is None:
            return None
        is_real = tokens.block_kwargs["cut"].places.is_real
        return torch.cat([is_real.repeat_interleave(self.tile_prefix, dim=1), tokens.is_valid], dim=1)

    def sequence(self, tokens: Tokens) -> Tokens:
        """The tokens with positions and mask in the format of the backbone of one tile."""
        cut = tokens.block_kwargs["cut"]
        alone = Tokens(
            tokens.x,
            self.tile_units,
            prefix=self.tile_prefix,
            block_kwargs=self.tile.positions_like(cut.kwargs, cut.own),
        )
        is_valid, can_see = None if self.sees_padding else self.validity(tokens), cut.can_see
        if is_valid is not None:
            can_see = without_padding(is_valid, can_see)
        return alone if can_see is None else self.tile.mask_attention(alone, None if can_see == "earlier" else can_see)

    def run_stages(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        return self.placed_after(self.tile.run_stages(self.sequence(tokens)), tokens)

    def placed_after(self, x: Float[Tensor, "B L D"], tokens: Tokens) -> Float[Tensor, "B L D"]:
        """The features with the positions of tiles that are added last."""
        if self.model.after is None:
            return x
        cut = tokens.block_kwargs["cut"]
        added = self.model.after(cut.places)
        if len(added) == 1 and len(cut.tile) == 1:
            return x + added[:, cut.tile[0]]
        return x + take(added.expand(len(x), -1, -1), cut.tile.expand(len(x), -1))

    def split(self, features: Any, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        """The features as (class and register tokens of all tiles, units): units row by row over all tiles."""
        return features[:, : tokens.prefix], features[:, tokens.prefix :]

    def units_and_validity(self, images: ImageBatch) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"] | None]:
        """The feature of every unit, row by row over all tiles, zero for padding; and False where it is padding."""
        units, is_valid = super().units_and_validity(images)
        return units if is_valid is None else units * is_valid[..., None], is_valid

    # ---- samples of several images, as lists of tiles ---------------------------------------------------------------

    def forward_tiles(
        self,
        tiles: Float[Tensor, "B N T C h w"],
        tile_grid: Int[Tensor, "b n 2"] | None = None,
        *,
        depths: Sequence[int] = (),
    ) -> TileFeatures:
        """Features tile by tile, of samples of several images, each a list of tiles row by row.

        >>> from patchcast.backbones import wrap
        >>> backbone = Tiled(wrap("test_vit", img_size=32), Grid(4, 4))
        >>> tiles, tile_grid = torch.zeros(2, 1, 4, 3, 32, 32), torch.tensor([[[2, 2]], [[1, 3]]])
        >>> found = backbone.forward_tiles(tiles, tile_grid, depths=[0, 6])
        >>> found.rows().shape, found.hidden[1].units.shape
        (torch.Size([2, 1, 4, 5, 64]), torch.Size([2, 1, 4, 4, 64]))

        Args:
            tiles: of N images per sample, padded to the same number of images and of tiles.
            tile_grid: (rows, columns) of tiles of each image; (0, 0) for padding. Optional if images have one tile.
                Its values are checked on the CPU only, where it may stay: a GPU would have to wait.
            depths: where to take hidden states: before block i, or after the last block. In this order.
        Raises:
            ValueError: if the tiles are not the backbone's, `tile_grid` does not fit them, or there is no such depth.
        """
        batch, images, count = tiles.shape[:3]
        self.check_lists(tiles, tile_grid)
        depth = len(self.tile.model.blocks)
        if any(not 0 <= block <= depth for block in depths):
            raise ValueError(f"hidden states are at depths 0 to {depth} of this {self.name}; asked for {list(depths)}")
        column, is_valid = Grid(count, 1), None
        places = Places.on(Grid(1, 1), tiles.device)
        if tile_grid is not None:
            places = Places.listed(tile_grid.flatten(0, 1).to(tiles.device, non_blocking=True), count)
            assert places.is_real is not None
            is_valid = places.is_real.repeat_interleave(self.tile_units.units, dim=1)
        tokens = self.add_positions(self.cut_patches(tiles.flatten(0, 1), column, places, is_valid))
        running, hidden, at = self.sequence(tokens), {}, 0
        for stop in sorted({*depths, depth}):
            running = running.with_(x=self.tile.run_blocks(running, at, stop))
            hidden[stop], at = running.x, stop
        last = self.placed_after(self.tile.model.norm(running.x), tokens)

        def tile_by_tile(x: Float[Tensor, "BN L D"], hidden: tuple[TileFeatures, ...] = ()) -> TileFeatures:
            prefix, units = self.split(x, tokens)
            prefix, units = prefix.unflatten(1, (count, -1)), self.by_tile(units, column)
            return TileFeatures(prefix.unflatten(0, (batch, images)), units.unflatten(0, (batch, images)), hidden)

        return tile_by_tile(last, tuple(tile_by_tile(hidden[block]) for block in depths))

    def check_lists(self, tiles: Float[Tensor, "B N T C h w"], tile_grid: Int[Tensor, "b n 2"] | None) -> None:
        height, width = self.tile_size
        if tuple(tiles.shape[3:]) != (self.channels, height, width):
            raise ValueError(f"tiles have {self.channels} channels of {height}x{width}; got {tuple(tiles.shape[3:])}")
        count = tiles.shape[2]
        if tile_grid is None:
            if count > 1:
                raise ValueError(f"images of {count} tiles need tile_grid, the rows and columns of tiles of each")
            return
        if tuple(tile_grid.shape) != (*tiles.shape[:2], 2):
            wanted, got = (*tiles.shape[:2], 2), tuple(tile_grid.shape)
            raise ValueError(f"tile_grid must be {wanted}, (rows, columns) of each image; got {got}")
        if tile_grid.device.type != "cpu" or torch.compiler.is_compiling():
            return
        for rows, cols in tile_grid.flatten(0, 1).tolist():
            if min(rows, cols) < 0 or rows * cols > count:
                raise ValueError(f"an image of {rows}x{cols} tiles does not fit the {count} tiles of each image")
            self.check_tiles(Grid(rows, cols))


def without_padding(
    is_valid: Bool[Tensor, "B L"], can_see: Bool[Tensor, "*B L L"] | Literal["earlier"] | None
) -> Bool[Tensor, "B 1 L L"]:
    """The mask without padding. A token that would then attend to nothing attends to itself."""
    length = is_valid.shape[1]
    if can_see is None:
        column = is_valid | ~is_valid.any(dim=1, keepdim=True)  # padding tokens attend to themselves
        return column[:, None, None].expand(-1, -1, length, -1)
    if isinstance(can_see, str):
        can_see = torch.ones(length, length, dtype=torch.bool, device=is_valid.device).tril()
    mask = can_see & is_valid[:, None, None]
    itself = torch.eye(length, dtype=torch.bool, device=is_valid.device)
    return mask | (itself & ~mask.any(dim=-1, keepdim=True))


class ClassProjection(nn.Module):
    """A linear layer on the class token of each tile.

    >>> from patchcast.backbones import wrap
    >>> backbone = Tiled(wrap("test_vit", img_size=32), Grid(1, 1))
    >>> ClassProjection(64, 8)(backbone.forward_tiles(torch.zeros(2, 3, 1, 3, 32, 32))).shape
    torch.Size([2, 3, 1, 8])

    Raises:
        ValueError: if the tiles have no class token.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, outputs, bias=False)

    def forward(self, features: TileFeatures) -> Float[Tensor, "B N T P"]:
        if not features.prefix.shape[3]:
            raise ValueError("the tiles of this backbone have no class token to project")
        return self.project(features.prefix[..., 0, :])
