"""The parts of data2vec 2: the mean of blocks, several plans per image, a convolutional decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcast.backbones import CannotError, Grid, wrap
from patchcast.honesty import no_leak
from patchcast.losses import squared
from patchcast.methods import data2vec, mae
from patchcast.plans import GridMask, MaskPlan, RandomMask, draw_each
from patchcast.predictors import ConvDecoder
from patchcast.pretrainer import Pretrainer
from patchcast.targets import EMAFeatures, Pixels, even_blocks
from patchcast.views import Context, Drop

SIZE = (32, 32)


# ---- the mean of blocks ---------------------------------------------------------------------------------------------


def test_the_target_is_the_mean_of_the_last_blocks_each_normalized() -> None:
    torch.manual_seed(0)
    backbone, images = wrap("test_vit", img_size=SIZE, patch_size=8).eval(), torch.randn(2, 3, *SIZE)
    outputs = []
    handles = [block.register_forward_hook(lambda *found: outputs.append(found[2])) for block in backbone.model.blocks]
    with torch.no_grad():
        backbone.model.forward_features(images)
    for handle in handles:
        handle.remove()
    mean = sum(F.layer_norm(each[:, 1:], each.shape[-1:]) for each in outputs[-3:]) / 3
    target = EMAFeatures(backbone, layers=3)
    torch.testing.assert_close(target(images), F.layer_norm(mean, mean.shape[-1:]))
    assert not torch.allclose(target(images), EMAFeatures(backbone)(images), atol=0.1)


@pytest.mark.parametrize("layers", [0, 7, -1])
def test_more_blocks_than_there_are_are_refused(layers: int) -> None:
    with pytest.raises(CannotError, match=f"layers={layers}, but .* ends in 6 blocks"):
        EMAFeatures(wrap("test_vit", img_size=SIZE, patch_size=8), layers=layers)


def test_blocks_of_one_width_are_counted_from_the_end() -> None:
    backbone = wrap("test_vit", img_size=SIZE, patch_size=8).train()
    assert even_blocks(backbone) == 6
    assert backbone.training
    assert even_blocks(wrap("test_resnet", img_size=64)) == 1
    assert data2vec(wrap("test_resnet", img_size=64), masks=1).target.layers == 1


# ---- several plans per image ----------------------------------------------------------------------------------------


class Counted(Pixels):
    """Pixels that count how many images they were asked for."""

    images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return super().forward(images)


def repeated(repeat: int) -> Pretrainer:
    torch.manual_seed(0)
    backbone = wrap("test_vit", img_size=SIZE, patch_size=8)
    target = Counted((8, 8), channels=3)
    embed, head = nn.Linear(backbone.width, 32), nn.Linear(32, target.outputs)
    return Pretrainer(
        backbone,
        plan=RandomMask(0.5),
        view=Drop(),
        predictor=ConvDecoder(32, depth=2, embed=embed, head=head),
        target=target,
        loss=squared,
        repeat=repeat,
    )


def test_several_plans_are_several_copies_of_the_images_and_one_pass_of_the_target() -> None:
    pretrainer, images = repeated(3), torch.randn(2, 3, *SIZE)
    output = pretrainer(images, generator=torch.Generator().manual_seed(0))
    assert pretrainer.target.images == 2
    assert len(output.plan.predict) == len(output.predictions) == 6
    assert len({tuple(row) for row in output.plan.predict[:3, 0].tolist()}) == 3, "the plans of an image differ"
    copies = pretrainer(images.repeat_interleave(3, dim=0), output.plan)
    assert torch.equal(copies.loss, output.loss)
    assert torch.equal(copies.targets, output.targets)
    assert len(output.embedding) == 2


def test_outside_of_training_there_is_one() -> None:
    pretrainer, images = repeated(3).eval(), torch.randn(2, 3, *SIZE)
    assert len(pretrainer(images).predictions) == len(pretrainer.draw(images).predict) == 2


@pytest.mark.parametrize("repeat", [1, 3])
def test_pieces_of_a_batch_have_the_plans_of_the_whole(repeat: int) -> None:
    pretrainer, images = repeated(repeat), torch.randn(4, 3, *SIZE)
    torch.manual_seed(5)
    whole, _ = pretrainer.draw_piece(images, 0, 1)
    rows = []
    for piece in range(2):
        torch.manual_seed(5)
        rows.append(pretrainer.draw_piece(images[piece * 2 : piece * 2 + 2], piece, 2)[0].predict)
    assert len(whole.predict) == 4 * repeat
    assert torch.equal(torch.cat(rows), whole.predict)


def test_weights_of_units_are_those_of_each_copy() -> None:
    pretrainer, images = repeated(3), torch.randn(2, 3, *SIZE)
    weights = torch.rand(2, 16)
    plan = pretrainer.draw(images, each=3)
    copies = pretrainer(images.repeat_interleave(3, 0), plan, unit_weight=weights.repeat_interleave(3, 0))
    assert torch.equal(copies.loss, pretrainer(images, plan, unit_weight=weights).loss)


def test_no_leak_holds_each_copy() -> None:
    pretrainer, images = repeated(3), torch.randn(2, 3, *SIZE)
    assert no_leak(pretrainer, images, pretrainer.draw(images, each=3)).honest


def test_numbers_of_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more; got 0"):
        repeated(0)
    pretrainer = repeated(1)
    with pytest.raises(ValueError, match="got 3 for 2"):
        pretrainer(torch.randn(2, 3, *SIZE), pretrainer.draw(torch.randn(3, 3, *SIZE)))


# ---- the decoder ----------------------------------------------------------------------------------------------------


def conv_decoder(**options: int) -> ConvDecoder:
    torch.manual_seed(0)
    return ConvDecoder(32, **{"depth": 1, **options}, embed=nn.Linear(8, 32), head=nn.Linear(32, 5))


def test_a_prediction_sees_as_far_as_the_kernels_reach() -> None:
    grid = Grid(1, 9)
    plan = MaskPlan(grid, torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8]]), torch.tensor([[[4]]]))
    units = torch.randn(1, 8, 8, requires_grad=True)
    conv_decoder(depth=2)(Context(grid, torch.zeros(1, 0, 8), units, plan.visible), plan).sum().backward()
    touched = [int(plan.visible[0, row]) for row in units.grad[0].abs().sum(dim=-1).nonzero().flatten()]
    assert touched == [2, 3, 5, 6]


def test_a_context_of_every_unit_gives_the_same_and_hidden_ones_are_not_read() -> None:
    decoder, grid = conv_decoder(), Grid(4, 4)
    plan = RandomMask(0.5)(grid, 2)
    every = torch.randn(2, 16, 8)
    seen = every.gather(1, plan.visible[..., None].expand(-1, -1, 8))
    prefix = torch.zeros(2, 1, 8)
    assert torch.equal(
        decoder(Context(grid, prefix, every), plan), decoder(Context(grid, prefix, seen, plan.visible), plan)
    )


def test_padding_changes_nothing() -> None:
    """Rows that are filled up would otherwise write over the unit that they repeat."""
    decoder, canvas = conv_decoder(), Grid(4, 4)
    plan = draw_each(RandomMask(0.5), [Grid(2, 2), canvas], canvas, torch.Generator().manual_seed(0))
    assert plan.is_seen is not None
    assert not plan.is_seen.all()
    valid = torch.cat([torch.ones(2, 1, dtype=torch.bool), plan.is_seen], dim=1)
    units, prefix = torch.randn(2, plan.visible.shape[1], 8), torch.zeros(2, 1, 8)
    before = decoder(Context(canvas, prefix, units, plan.visible, valid), plan)
    units = torch.where(plan.is_seen[..., None], units, torch.randn_like(units))
    assert torch.equal(decoder(Context(canvas, prefix, units, plan.visible, valid), plan), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 5}, "divisible by their groups; got 32 and 5"),
        ({"kernel": 2}, "odd number of units; got 2"),
        ({"depth": 0}, "at least one layer; got a depth of 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conv_decoder(**options)


def test_the_methods_parts() -> None:
    pretrainer = data2vec(wrap("test_vit", img_size=48), masks=4)
    assert pretrainer.repeat == 4
    assert isinstance(pretrainer.target, EMAFeatures)
    assert pretrainer.target.layers == 5
    assert data2vec("test_vit", layers=2).target.layers == 2


def test_mae_hides_cells() -> None:
    assert mae("test_vit", mask_cell=4).plan == GridMask(0.75, cell=4)
    assert mae("test_vit").plan == RandomMask(0.75)
