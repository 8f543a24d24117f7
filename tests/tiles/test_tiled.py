"""A backbone over the tiles of an image: where tokens are, what padding does, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchcast.backbones import CannotError, Grid, wrap
from patchcast.backbones.tile_geometry import Places, assemble, tile_crop
from patchcast.backbones.tiled import ClassProjection, Tiled
from tests.tiles.parts import FAMILIES, canvas_of, tile_backbone, tiled

every_family = pytest.mark.parametrize("family", FAMILIES)


def close(found: Tensor, wanted: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


@every_family
def test_one_tile_is_the_backbone_itself(family: str) -> None:
    backbone = tile_backbone(family)
    images = torch.randn(2, 3, 32, 48)
    close(Tiled(backbone, Grid(2, 2)).eval().units(images), backbone.units(images))


@every_family
def test_tiles_that_do_not_look_at_one_another_are_images(family: str) -> None:
    """Positions, class tokens and units of each tile are its own: under a mask by tiles each is alone."""
    backbone = tile_backbone(family)
    over = Tiled(backbone, Grid(2, 3)).eval()
    images = torch.randn(2, 3, 64, 96)
    tokens = over.embed(images)
    tile = tokens.block_kwargs["cut"].tile[0]
    prefix, units = over.split(over.forward_stages(tokens, can_see=tile[:, None] == tile), tokens)
    tiles = tile_crop(images, (32, 48)).flatten(0, 1)
    alone = backbone.embed(tiles)
    own_prefix, own_units = backbone.split(backbone.forward_stages(alone), alone)
    close(over.by_tile(units, Grid(2, 2)).flatten(0, 1), own_units)
    close(prefix.reshape(own_prefix.shape), own_prefix)


@every_family
def test_units_are_numbered_over_the_whole_image(family: str) -> None:
    """Painting a unit moves the token at its place, and no other unit's."""
    backbone = tiled(family)
    images = torch.randn(1, 3, 64, 144)
    grid = backbone.grid(images)
    assert grid == (4, 9)
    before = backbone.embed(images)
    for unit in (0, 7, 20, 35):
        is_hidden = torch.zeros(1, *grid, dtype=torch.bool)
        is_hidden[0, unit // 9, unit % 9] = True
        moved = (backbone.embed(backbone.blank(images, is_hidden)).x - before.x).abs().amax(dim=(0, 2)) > 0
        assert moved.nonzero().flatten().tolist() == [before.prefix + unit]


@every_family
def test_kept_units_stand_in_the_order_asked_for(family: str) -> None:
    backbone = tiled(family)
    images = torch.randn(2, 3, 64, 96)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    tokens = backbone.keep(backbone.embed(images), order)
    units = backbone.split(backbone.forward_stages(tokens), tokens)[1]
    whole = backbone.units(images)
    close(units, whole.gather(1, order[..., None].expand_as(whole)))


@every_family
def test_padding_changes_nothing(family: str) -> None:
    """An image on a larger canvas, among others and beside noise, is the image alone."""
    backbone = tiled(family)
    images = [torch.randn(3, 64, 96), torch.randn(3, 32, 144), torch.randn(3, 32, 48)]
    batch = canvas_of(images, (64, 144))
    units = backbone.units(batch).unflatten(1, (4, 9))
    assert torch.equal(units, backbone.units(canvas_of(images, (64, 144))).unflatten(1, (4, 9)))
    pooled, means = backbone.pool(batch), backbone.pool(batch, "mean")
    for place, (image, found) in enumerate(zip(images, units, strict=True)):
        rows, cols = image.shape[1] // 16, image.shape[2] // 16
        alone = backbone.units(image[None])[0].unflatten(0, (rows, cols))
        close(found[:rows, :cols], alone, atol=1e-4)
        close(means[place], alone.mean(dim=(0, 1)), atol=1e-4)
        close(pooled[place], backbone.pool(image[None])[0], atol=1e-4)
        assert found[rows:].abs().sum() == found[:, cols:].abs().sum() == 0


def test_units_of_a_real_tile_can_be_padding_too() -> None:
    backbone = tiled()
    images = [torch.randn(3, 50, 60)]
    one, two = backbone.units(canvas_of(images, (64, 96))), backbone.units(canvas_of(images, (64, 96)))
    moved = (one - two).abs().amax(dim=2).unflatten(1, (4, 6))[0] > 0
    # Units at the edge hold noise beside the image and move with it; they can be seen, and move all others a little.
    valid = backbone.embed(canvas_of(images, (64, 96))).is_valid
    assert valid is not None
    assert torch.equal(moved, valid.unflatten(1, (4, 6))[0])
    assert valid.sum() == 4 * 4
    whole = [torch.randn(3, 48, 64)]
    assert torch.equal(backbone.units(canvas_of(whole, (64, 96))), backbone.units(canvas_of(whole, (64, 96))))


def test_lists_of_tiles_are_the_images() -> None:
    backbone = tiled()
    images = [torch.randn(3, 64, 96), torch.randn(3, 32, 144), torch.randn(3, 64, 48)]
    tiles = torch.randn(1, 4, 4, 3, 32, 48)
    for slot, image in enumerate(images):
        cut = tile_crop(image, (32, 48))
        tiles[0, slot, : len(cut)] = cut
    tile_grid = torch.tensor([[[2, 2], [1, 3], [2, 1], [0, 0]]])
    found = backbone.forward_tiles(tiles, tile_grid)
    for slot, image in enumerate(images):
        rows, cols = tile_grid[0, slot].tolist()
        alone = backbone.by_tile(backbone.units(image[None]), Grid(rows, cols))[0]
        close(found.units[0, slot, : rows * cols], alone, atol=1e-4)
    assert found.units.isfinite().all(), "an image that is padding alone has no NaN"
    other = tiles.clone()
    other[0, 1:, 3], other[0, 3] = torch.randn(3, 3, 32, 48), torch.randn(4, 3, 32, 48)
    again = backbone.forward_tiles(other, tile_grid)
    for slot in range(3):
        real = int(tile_grid[0, slot].prod())
        assert torch.equal(again.rows()[0, slot, :real], found.rows()[0, slot, :real])


def test_positions_are_those_of_a_loop_over_the_batch() -> None:
    backbone = tiled(grid=(3, 4))
    tile_grid = torch.tensor([[2, 2], [1, 4], [3, 1], [0, 0]])
    places = Places.listed(tile_grid, 5)
    before, tokens = backbone.model.before, backbone.model.tokens
    local = backbone.local_positions()
    assert before is not None
    assert tokens is not None
    assert local is not None
    for image, (rows, cols) in enumerate(tile_grid.tolist()):
        for place in range(5):
            real = place < rows * cols
            at = (place // cols, place % cols) if real else (0, 0)
            table = before.positions[at] * before.gate.tanh() * real
            torch.testing.assert_close(before(places)[image, place], table)
            mixed = (1 - tokens.gate.tanh()) * local + tokens.gate.tanh() * tokens.positions[at] * real
            close(local + tokens(places, local)[image, place], mixed)


def test_gates_begin_shut_and_tell_tiles_apart_when_open() -> None:
    same = torch.randn(1, 3, 32, 48).repeat(1, 1, 1, 2)  # two equal tiles side by side

    def apart(backbone: Tiled) -> float:
        left, right = backbone.by_tile(backbone.units(same), Grid(1, 2))[0]
        return (left - right).abs().max().item()

    assert apart(Tiled(tile_backbone("plain"), Grid(1, 2)).eval()) < 1e-5
    for part in ("before", "tokens", "after"):
        only = {name: name == part for name in ("before", "tokens", "after")}
        assert apart(tiled(grid=(1, 2), **only)) > 0.01


@pytest.mark.parametrize("family", ["plain", "pre-norm", "mixed rotary", "relative"])
def test_hidden_states(family: str) -> None:
    backbone = tiled(family)
    tiles, tile_grid = torch.randn(2, 1, 3, 3, 32, 48), torch.tensor([[[1, 3]], [[1, 2]]])
    found = backbone.forward_tiles(tiles, tile_grid, depths=[2, 0, 1])
    last, first, middle = (each.rows() for each in found.hidden)
    assert backbone.model.after is not None
    places = Places.listed(tile_grid[:, 0], 3)
    after = backbone.tile.model.norm(last) + backbone.model.after(places)[:, None, :, None]
    close(after, found.rows())
    assert (first - middle).abs().max() > 0.01
    no_blocks = backbone.forward_tiles(tiles, tile_grid, depths=[0]).hidden[0]
    assert torch.equal(no_blocks.rows(class_last=True)[..., -first.shape[3] :, :].roll(1, dims=3), first) or (
        backbone.tile_prefix != 1
    )
    with pytest.raises(ValueError, match="hidden states are at depths 0 to 2 of this tiled"):
        backbone.forward_tiles(tiles, tile_grid, depths=[3])


def test_the_projection_reads_the_class_token() -> None:
    backbone = tiled("registers")
    found = backbone.forward_tiles(torch.randn(2, 2, 1, 3, 32, 48))
    project = ClassProjection(48, 5)
    close(project(found), found.rows()[..., 0, :] @ project.project.weight.T)
    with pytest.raises(ValueError, match="no class token"):
        project(tiled("no class token").forward_tiles(torch.randn(1, 1, 1, 3, 32, 48)))


def test_tiles_are_cut_and_put_together_row_by_row() -> None:
    image = torch.arange(2 * 1 * 4 * 6).view(2, 1, 4, 6)
    tiles = tile_crop(image, (2, 3))
    assert torch.equal(tiles[1, 1], image[1, :, :2, 3:])
    assert torch.equal(tiles[1, 2], image[1, :, 2:, :3])
    assert torch.equal(assemble(tiles, Grid(2, 2)), image)
    with pytest.raises(ValueError, match="a grid of 2x3 has 6 tiles; got 4"):
        assemble(tiles, Grid(2, 3))


def test_what_is_wrong_is_refused() -> None:
    backbone = tiled(grid=(2, 3))
    with pytest.raises(CannotError, match="SwinTransformer cannot run over the tokens of several tiles"):
        Tiled(wrap("swin_tiny_patch4_window7_224"), Grid(2, 2))
    with pytest.raises(CannotError, match="tiled VisionTransformer cannot run over"):
        Tiled(backbone, Grid(2, 2))
    with pytest.raises(ValueError, match="has one tile at least; got a grid of 0x2"):
        Tiled(tile_backbone("plain"), Grid(0, 2))
    with pytest.raises(ValueError, match="tiles of 32x48 need H and W divisible by 32 and 48; got 65x96"):
        backbone.units(torch.zeros(1, 3, 65, 96))
    with pytest.raises(ValueError, match="has positions for 2x3 tiles; an image has 3x1"):
        backbone.units(torch.zeros(1, 3, 96, 48))
    with pytest.raises(ValueError, match="takes 3 channels; got 1"):
        backbone.units(torch.zeros(1, 1, 32, 48))
    with pytest.raises(ValueError, match="larger than their canvas of 32x48"):
        backbone.units({"canvas": torch.zeros(1, 3, 32, 48), "size": torch.tensor([[33, 48]])})
    with pytest.raises(ValueError, match="size gives"):
        backbone.units({"canvas": torch.zeros(2, 3, 32, 48), "size": torch.tensor([[32, 48]])})
    tiles = torch.zeros(1, 2, 3, 3, 32, 48)
    with pytest.raises(ValueError, match="images of 3 tiles need tile_grid"):
        backbone.forward_tiles(tiles)
    with pytest.raises(ValueError, match="an image of 2x2 tiles does not fit the 3 tiles"):
        backbone.forward_tiles(tiles, torch.tensor([[[2, 2], [1, 1]]]))
    with pytest.raises(ValueError, match="has positions for 2x3 tiles; an image has 3x1"):
        backbone.forward_tiles(tiles, torch.tensor([[[3, 1], [1, 1]]]))
    with pytest.raises(ValueError, match=r"tile_grid must be \(1, 2, 2\)"):
        backbone.forward_tiles(tiles, torch.tensor([[[1, 1]]]))
    with pytest.raises(ValueError, match="tiles have 3 channels of 32x48"):
        backbone.forward_tiles(torch.zeros(1, 1, 1, 3, 48, 32))
