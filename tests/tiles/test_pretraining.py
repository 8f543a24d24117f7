"""Every method over the whole tiled sequence, held to the contracts; and images of different sizes in one batch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from patchcast.backbones import CannotError, Grid
from patchcast.backbones.tiled import Tiled
from patchcast.honesty import no_leak
from patchcast.methods import mae
from patchcast.plans import FromStart, MaskPlan, MultiBlock, OrderPlan, RandomMask, RasterOrder, draw_each
from patchcast.predictors import Decoder
from patchcast.pretrainer import Pretrainer
from tests import contracts, methods
from tests.backbones.zoo import sequence
from tests.tiles.parts import canvas_of

TILES = Grid(2, 3)
BACKBONES = {kind: partial(sequence, kind, img_size=16, patch_size=8, in_chans=1) for kind in ("plain", "rotary")}


# Views and orders that tiles could break; what is predicted makes no difference to them.
METHODS = [*methods.KINDS, "beit", "ijepa by replacement", "mae, painted", "aim, causal", "aim, random order"]

every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str, backbone: str = "plain") -> Pretrainer:
    torch.manual_seed(0)
    return methods.build(method, Tiled(BACKBONES[backbone](), TILES))


def ragged() -> dict[str, Tensor]:
    """Images of 4x6, 2x6, 3x2 and 4x6 units, beside noise; the third fills its tiles in part."""
    sizes = [(32, 48), (16, 48), (24, 16), (32, 41)]
    return canvas_of([torch.randn(1, *size) for size in sizes], (32, 48))


@every_method
def test_no_leak(method: str) -> None:
    contracts.check_no_leak(build(method))


@pytest.mark.parametrize("method", methods.KINDS)
def test_no_leak_with_rotary_positions(method: str) -> None:
    contracts.check_no_leak(build(method, "rotary"))


@pytest.mark.parametrize("method", ["mae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("simmim", "aim"))])
def test_noise_floor(method: str) -> None:
    contracts.check_noise_floor(build(method))


@every_method
def test_gradients(method: str) -> None:
    contracts.check_gradients(build(method))


@pytest.mark.parametrize("method", methods.KINDS)
def test_save_and_load(method: str) -> None:
    contracts.check_save_and_load(build(method), build(method))


@pytest.mark.parametrize("method", methods.KINDS)
def test_modes(method: str) -> None:
    contracts.check_modes(build(method))


@pytest.mark.parametrize("method", methods.KINDS)
def test_gradient_checkpointing(method: str) -> None:
    contracts.check_gradient_checkpointing(build(method))


# ---- images of different sizes in one batch --------------------------------------------------------------------------


@every_method
def test_images_of_different_sizes_do_not_leak(method: str) -> None:
    """Padding is among what no prediction may use: changed with the rest, it moves none."""
    pretrainer, images = contracts.perturbed(build(method)), ragged()
    plan = pretrainer.draw(images, torch.Generator().manual_seed(1))
    valid = pretrainer.backbone.embed(images).is_valid
    assert valid is not None
    counted = plan.weight > 0 if plan.weight is not None else torch.ones_like(plan.predict, dtype=torch.bool)
    assert valid.gather(1, plan.predict.flatten(1)).view_as(counted)[counted].all(), "padding is asked for"
    # Beyond its own loss, a padded unit may not be used either: `may_use` of what counts has none.
    assert not (plan.may_use() & ~valid[:, None, None] & counted[..., None]).any(), "padding is context"
    leak = no_leak(pretrainer, images, plan)
    assert leak.worst == 0.0
    assert leak.allowed > 0.0


@every_method
def test_what_lies_beside_an_image_changes_no_loss_and_no_gradient(method: str) -> None:
    one = contracts.perturbed(build(method)).eval()
    two = copy.deepcopy(one)
    images = ragged()
    images["size"][3, 1] = 48
    plan = one.draw(images, torch.Generator().manual_seed(1))
    beside = canvas_of(
        [canvas[:, :h, :w] for canvas, (h, w) in zip(images["canvas"], images["size"].tolist(), strict=True)], (32, 48)
    )
    outputs = [one(images, plan), two(beside, plan)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(outputs[0].embedding, outputs[1].embedding)
    for output in outputs:
        output.loss.backward()
    for (name, mine), other in zip(one.named_parameters(), two.parameters(), strict=True):
        if mine.grad is not None:
            assert torch.equal(mine.grad, other.grad), name


@pytest.mark.parametrize("method", methods.KINDS)
def test_an_image_among_others_is_predicted_as_if_it_were_alone(method: str) -> None:
    """The same plan for the image by itself, on a canvas of its own: the same predictions."""
    pretrainer, images = contracts.perturbed(build(method)).eval(), ragged()
    if isinstance(pretrainer.predictor, Decoder) or method == "aim":
        pretrainer.predictor.positions.grid = Grid(0, 0)  # positions of each grid anew: those of the canvas are others
    plan = pretrainer.draw(images, torch.Generator().manual_seed(1))
    found = pretrainer(images, plan).predictions[1]
    alone = images["canvas"][1:2, :, :16, :48]
    if isinstance(plan, MaskPlan):
        assert plan.is_seen is not None
        assert plan.is_predicted is not None
        seen, asked = (
            plan.visible[1, plan.is_seen[1]],
            [u[m] for u, m in zip(plan.hidden[1], plan.is_predicted[1], strict=True)],
        )
        own = MaskPlan(Grid(2, 6), seen[None], torch.stack(asked)[None])
        found = torch.stack([each[mask] for each, mask in zip(found, plan.is_predicted[1], strict=True)])
    else:
        own = OrderPlan(Grid(2, 6), plan.order[1:2, :12], plan.prefix[1:2])
        found = found[:, :11]
    torch.testing.assert_close(pretrainer(alone, own).predictions[0], found, atol=2e-4, rtol=1e-3)


def test_plans_are_drawn_by_each_images_own_size() -> None:
    grids, canvas = [Grid(4, 6), Grid(2, 2), Grid(4, 6), Grid(3, 6)], Grid(4, 6)
    plan = draw_each(RandomMask(0.75), grids, canvas, torch.Generator().manual_seed(0))
    assert isinstance(plan, MaskPlan)
    assert plan.is_seen is not None
    assert plan.is_predicted is not None
    assert plan.is_seen.sum(dim=1).tolist() == [6, 1, 6, 4]
    assert plan.is_predicted.sum(dim=(1, 2)).tolist() == [18, 3, 18, 14]
    for image, grid in enumerate(grids):
        seen, asked = plan.visible[image, plan.is_seen[image]], plan.hidden[image][plan.is_predicted[image]]
        every = {row * 6 + col for row in range(grid.rows) for col in range(grid.cols)}
        assert {*seen.tolist(), *asked.tolist()} == every
    order = draw_each(RasterOrder(), grids, canvas, torch.Generator().manual_seed(0))
    assert isinstance(order, OrderPlan)
    assert order.order[1].tolist()[:4] == [0, 1, 6, 7]
    assert torch.equal(order.order.sort().values, torch.arange(24).expand(4, -1))
    assert all(0 < prefix < grid.units for prefix, grid in zip(order.prefix.tolist(), grids, strict=True))
    whole = draw_each(MultiBlock(), [canvas] * 2, canvas, torch.Generator().manual_seed(0))
    assert torch.equal(whole.predict, MultiBlock()(canvas, 2, torch.Generator().manual_seed(0)).predict)
    with pytest.raises(ValueError, match="an image of 5x2 units does not fit on a canvas of 4x6"):
        draw_each(RandomMask(0.5), [Grid(5, 2)], canvas)
    with pytest.raises(ValueError, match="StartPlan, which images of different sizes cannot have"):
        draw_each(FromStart(), [Grid(2, 2), Grid(4, 6)], canvas)


def test_padding_that_is_seen_cannot_be_planned() -> None:
    pretrainer = mae(Tiled(BACKBONES["plain"](), TILES, sees_padding=True), decoder_depth=1)
    with pytest.raises(CannotError, match="sees_padding=True does not work with images of different sizes"):
        pretrainer.draw(ragged())


@pytest.mark.parametrize("method", ["mae", "aim"])
def test_the_loss_falls_on_images_of_different_sizes(method: str) -> None:
    """A bright square at a place that the image's upper left corner tells: learned in a few steps."""
    torch.manual_seed(0)
    pretrainer = methods.build(method, Tiled(BACKBONES["plain"](), TILES))
    pretrainer.target.normalize = False
    smooth = [
        torch.linspace(-1, 1, h)[:, None] * torch.linspace(-1, 1, w) * s
        for h, w, s in [(32, 48, 1.0), (16, 48, -1.0), (24, 16, 2.0), (32, 32, 0.5)]
    ]
    images = canvas_of([each[None] for each in smooth], (32, 48))
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        loss = pretrainer(images, generator=torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
