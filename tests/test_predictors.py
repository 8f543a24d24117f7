"""The one masked decoder, against the two of lightly that it stands for, and what neither of them can do."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionEncoder

from patchcast.backbones import CannotError, Grid, wrap
from patchcast.geometry import take
from patchcast.losses import squared
from patchcast.plans import MaskPlan, RandomMask, RasterOrder
from patchcast.predictors import Decoder, LastBlock, decoder_for
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import Attend, Context, Drop, View
from tests.peers import assert_same_gradients, copy_weights, wake

GRID, WIDTH, ENCODER = Grid(4, 4), 32, 24


def decoder(grid: Grid = GRID, *, drop_path: float = 0.0, depth: int = 2) -> Decoder:
    built = Decoder(
        WIDTH,
        grid=grid,
        depth=depth,
        heads=4,
        embed=nn.Linear(ENCODER, WIDTH),
        head=nn.Linear(WIDTH, 12),
        drop_path=drop_path,
    )
    wake(built)
    return built


def test_any_width_has_a_decoder_of_convolutions() -> None:
    """Of 72 channels in eight groups: data2vec's 16 do not divide them."""
    built = decoder_for(wrap("test_vit", img_size=32), 5, width=72, depth=1, kernel=3)
    assert built.blocks[0][0].groups == 8


def context(plan: MaskPlan, prefix: int = 1) -> Context:
    batch, seen = plan.visible.shape
    units = torch.randn(batch, seen, ENCODER, requires_grad=True)
    return Context(plan.grid, torch.randn(batch, prefix, ENCODER, requires_grad=True), units, plan.visible)


@pytest.fixture
def lightly() -> object:
    pytest.importorskip("lightly", reason="lightly is the peer here: pip install patchcast[peers]")
    from lightly.models import modules, utils

    return type("lightly", (), {"modules": modules, "utils": utils})


def test_equals_lightlys_mae_decoder(lightly) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its successor is compared below
        theirs = lightly.modules.MAEDecoderTIMM(
            num_patches=16,
            patch_size=2,
            embed_dim=ENCODER,
            decoder_embed_dim=WIDTH,
            decoder_depth=2,
            decoder_num_heads=4,
        )
    wake(theirs)
    ours, plan = decoder(), RandomMask(0.75)(GRID, 3)

    def name(key: str) -> str:
        first, *rest = key.split(".")
        renamed = {"head": "decoder_pred", "mask_token": "mask_token"}.get(first, f"decoder_{first}")
        return ".".join([renamed, *rest])

    copy_weights(ours, theirs, name)
    seen = context(plan)
    predictions = ours(seen, plan)
    predictions.square().sum().backward()

    units, prefix = seen.units.detach().requires_grad_(), seen.prefix.detach().requires_grad_()
    keep, hide = plan.visible + 1, plan.hidden[:, 0] + 1
    keep = torch.cat([torch.zeros(3, 1, dtype=torch.long), keep], dim=1)
    full = lightly.utils.repeat_token(theirs.mask_token, (3, 17))
    full = lightly.utils.set_at_index(full, keep, theirs.embed(torch.cat([prefix, units], dim=1)))
    expected = theirs.predict(lightly.utils.get_at_index(theirs.decode(full), hide))
    expected.square().sum().backward()

    torch.testing.assert_close(predictions[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.units.grad, units.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(seen.prefix.grad, prefix.grad, atol=1e-4, rtol=1e-5)
    assert_same_gradients(ours, theirs, name, atol=1e-4)


def test_equals_lightlys_shared_decoder(lightly) -> None:
    """The class that replaces it in lightly, which takes the whole sequence and an index of what is hidden."""
    theirs = lightly.modules.MaskedVisionTransformerDecoderTIMM(16, WIDTH, depth=2, num_heads=4, num_prefix_tokens=2)
    wake(theirs)
    ours, plan = decoder(), RandomMask(0.5)(GRID, 2)
    ours.embed, ours.head = nn.Identity(), nn.Identity()
    copy_weights(ours, theirs, lambda key: key)
    prefix, every = torch.randn(2, 2, WIDTH), torch.randn(2, 16, WIDTH)
    seen = Context(GRID, prefix, every.gather(1, plan.visible[..., None].expand(-1, -1, WIDTH)), plan.visible)
    predictions = ours(seen, plan)
    predictions.square().sum().backward()

    hide = plan.hidden[:, 0] + 2
    expected = theirs(torch.cat([prefix, every], dim=1), idx_mask=hide)
    expected = lightly.utils.get_at_index(expected, hide)
    expected.square().sum().backward()
    torch.testing.assert_close(predictions[:, 0], expected, atol=1e-5, rtol=0)
    assert_same_gradients(ours, theirs, lambda key: key, atol=1e-4)


def test_equals_lightlys_ijepa_predictor(lightly) -> None:
    theirs = lightly.modules.IJEPAPredictorTIMM(
        num_patches=16, depth=2, mlp_dim=ENCODER, predictor_embed_dim=WIDTH, num_heads=4
    )
    wake(theirs)
    ours = decoder()
    ours.head = nn.Linear(WIDTH, ENCODER)

    def name(key: str) -> str:
        first, _, rest = key.partition(".")
        return {"embed": f"predictor_embed.{rest}", "head": f"predictor_proj.{rest}"}.get(first, f"decoder.{key}")

    copy_weights(ours, theirs, name)
    shuffled = torch.stack([torch.randperm(16) for _ in range(3)])
    plan = MaskPlan(GRID, shuffled[:, :6], torch.stack([shuffled[:, 6:10], shuffled[:, 8:12], shuffled[:, 12:]], dim=1))
    seen = context(plan, prefix=0)
    predictions = ours(seen, plan)
    predictions.square().sum().backward()

    units = seen.units.detach().requires_grad_()
    expected = theirs(units, [plan.visible], list(plan.predict.unbind(dim=1)))  # groups first, then images
    expected.square().sum().backward()
    torch.testing.assert_close(predictions, expected.unflatten(0, (3, 3)).transpose(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.units.grad, units.grad, atol=1e-4, rtol=1e-5)
    assert_same_gradients(ours, theirs, name, atol=1e-4)


def test_groups_do_not_see_one_another() -> None:
    """Four groups in one call are four calls of one group."""
    ours = decoder()
    shuffled = torch.stack([torch.randperm(16) for _ in range(2)])
    plan = MaskPlan(GRID, shuffled[:, :4], shuffled[:, 4:].unflatten(1, (4, 3)))
    seen = context(plan)
    together = ours(seen, plan)
    for group in range(4):
        alone = ours(seen, MaskPlan(GRID, plan.visible, plan.hidden[:, group : group + 1]))
        torch.testing.assert_close(together[:, group], alone[:, 0], atol=1e-5, rtol=0)


def test_a_whole_context_gives_only_its_visible_rows() -> None:
    plan = RandomMask(0.75)(GRID, 2)
    seen = context(plan)
    every = torch.full((2, 16, ENCODER), float("nan")).scatter(
        1, plan.visible[..., None].expand(-1, -1, ENCODER), seen.units.detach()
    )
    ours = decoder()
    whole = ours(Context(GRID, seen.prefix, every), plan)
    assert torch.equal(whole, ours(seen, plan))


@pytest.mark.parametrize("grid", [Grid(2, 7), Grid(8, 8)])
def test_any_grid(grid: Grid) -> None:
    """A decoder built for one grid gives on another what one built for that other gives."""
    ours, other = decoder(), decoder(grid)
    assert not {"positions.table"} & ours.state_dict().keys()  # computed, not learned: nothing to resize
    other.load_state_dict(ours.state_dict())
    plan = RandomMask(0.5)(grid, 2)
    seen = context(plan)
    assert torch.equal(ours(seen, plan), other(seen, plan))


def test_an_attention_mask_is_obeyed() -> None:
    """Mask tokens that look at the context only, as in cross-attention, do not depend on one another."""
    ours, plan = decoder(), RandomMask(0.75)(GRID, 2)
    seen = context(plan)
    length, asked = 1 + plan.visible.shape[1] + plan.predict.shape[2], plan.predict.shape[2]
    can_see = torch.ones(length, length, dtype=torch.bool)
    can_see[:, -asked:] = False
    can_see |= torch.eye(length, dtype=torch.bool)
    together = ours(seen, plan, can_see)
    one = MaskPlan(GRID, plan.visible, plan.hidden[..., 3:4])
    torch.testing.assert_close(together[:, :, 3:4], ours(seen, one, can_see[: 1 - asked, : 1 - asked]))
    assert not torch.allclose(together, ours(seen, plan))
    each = can_see.expand(2, 1, length, length)
    torch.testing.assert_close(ours(seen, plan, each), together)


def test_gradient_checkpointing_changes_no_number() -> None:
    one, plan = decoder(drop_path=0.5, depth=3), RandomMask(0.75)(GRID, 2)
    two = copy.deepcopy(one)
    two.set_grad_checkpointing()
    seen = context(plan)
    for each in (one, two):
        torch.manual_seed(1)  # of drop path, which the recomputation must draw alike
        each(seen, plan).square().sum().backward()
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


class Centered(Mlp):
    """An MLP over several tokens, which no row has by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True))


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"qkv_bias": False},
    {"qkv_bias": False, "proj_bias": False},
    {"init_values": 0.5, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    {"norm_layer": RmsNorm, "act_layer": nn.SiLU, "mlp_ratio": 2.0},
    {"mlp_layer": SwiGLU, "norm_layer": nn.RMSNorm},
    {"mlp_layer": GluMlp},
    {"mlp_layer": Centered},
    {"attn_layer": "diff"},
    {"proj_drop": 0.2, "attn_drop": 0.3, "drop_path": 0.4},  # nothing in eval mode
]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("more", ARGUMENTS, ids=str)
def test_last_block_is_the_plain_one_at_the_rows_that_are_asked_for(is_masked: bool, more: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"dim": 32, "num_heads": 4, "qkv_bias": True, **more}
    plain, last = Block(**settings).eval(), LastBlock(**settings).eval()
    wake(plain)
    last.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 32, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    mask = (torch.rand(2, 1, 9, 9) < 0.5) | torch.eye(9, dtype=torch.bool) if is_masked else None
    mask = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    expected, found = plain(x, attn_mask=mask)[:, -4:], last(again, attn_mask=mask, last=4)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(again.grad, x.grad)
    assert_same_gradients(last, plain, lambda key: key, atol=1e-5)


def test_last_block_runs_what_was_put_in_the_place_of_its_projection() -> None:
    """An adapter as LoRA's: a module around the linear map, which has a `weight` that is not all of it."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(32, 2, bias=False), nn.Linear(2, 96, bias=False)

        @property
        def weight(self) -> Tensor:
            return self.base.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    plain, last = Block(32, 4), LastBlock(32, 4)
    for block in (plain, last):
        block.attn.qkv = Adapted(block.attn.qkv)
    last.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(last(x, last=4), plain(x)[:, -4:])


@pytest.mark.parametrize("more", ARGUMENTS, ids=str)
def test_every_argument_of_the_block_passes_through_the_decoder(more: dict[str, Any]) -> None:
    """Over torchvision's encoder, as an MAE: the loss has a gradient at every weight."""
    more = {name: value for name, value in more.items() if name != "drop_path"}
    encoder = TorchvisionEncoder(
        image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=ENCODER, mlp_dim=32, num_classes=0
    )
    built = Decoder(
        WIDTH, grid=GRID, depth=2, heads=4, embed=nn.Linear(ENCODER, WIDTH), head=nn.Linear(WIDTH, 48), **more
    )
    target = Pixels((4, 4), channels=3)
    pretrainer = Pretrainer(
        wrap(encoder), plan=RandomMask(0.75), view=Drop(), predictor=built, target=target, loss=squared
    )
    pretrainer(torch.randn(4, 3, 16, 16)).loss.backward()
    assert all(each.grad is not None for each in built.parameters())
    biases = [block.attn.qkv.bias is not None for block in built.blocks]
    assert biases == [more.get("qkv_bias", True)] * 2


def test_equals_lightlys_decoder_with_its_other_arguments(lightly) -> None:
    more = {"qkv_bias": False, "norm_layer": partial(RmsNorm, eps=1e-5), "mlp_ratio": 2.0}
    theirs = lightly.modules.MaskedVisionTransformerDecoderTIMM(16, WIDTH, depth=2, num_heads=4, **more)
    wake(theirs)
    ours = Decoder(WIDTH, grid=GRID, depth=2, heads=4, embed=nn.Identity(), head=nn.Identity(), **more)
    copy_weights(ours, theirs, lambda key: key)
    plan, every = RandomMask(0.5)(GRID, 2), torch.randn(2, 17, WIDTH)
    seen = Context(GRID, every[:, :1], take(every[:, 1:], plan.visible), plan.visible)
    expected = theirs(every, idx_mask=plan.hidden[:, 0] + 1)
    expected = lightly.utils.get_at_index(expected, plan.hidden[:, 0] + 1)
    torch.testing.assert_close(ours(seen, plan)[:, 0], expected, atol=1e-5, rtol=0)


def test_drop_path_may_be_given_block_by_block() -> None:
    parts: dict[str, Any] = {"grid": GRID, "heads": 4, "embed": nn.Identity(), "head": nn.Identity()}
    built = Decoder(WIDTH, depth=2, drop_path=[0.2, 0.2], **parts)  # as lightly's
    assert [block.drop_path1.drop_prob for block in built.blocks] == [0.2, 0.2]
    with pytest.raises(ValueError, match="got 3 for 2 blocks"):
        Decoder(WIDTH, depth=2, drop_path=[0.2] * 3, **parts)
    with pytest.raises(TypeError, match="qkv_biases"):
        Decoder(WIDTH, depth=2, qkv_biases=False, **parts)


def test_drop_path_rises_with_depth() -> None:
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in decoder(drop_path=0.3, depth=4).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"divisible by its heads; got 30 and 4"):
        Decoder(30, grid=GRID, depth=1, heads=4, embed=nn.Identity(), head=nn.Identity())
    with pytest.raises(ValueError, match="needs at least one block; got a depth of 0"):
        Decoder(32, grid=GRID, depth=0, heads=4, embed=nn.Identity(), head=nn.Identity())


@pytest.mark.parametrize(
    ("view", "message"), [(Drop(), "Drop shows a MaskPlan"), (Attend(), "Decoder predicts from a MaskPlan")]
)
def test_an_order_is_refused(view: View, message: str) -> None:
    target = Pixels((16, 16), channels=3)
    with pytest.raises(CannotError, match=message):
        Pretrainer(
            wrap("test_vit", img_size=64),
            plan=RasterOrder(),
            view=view,
            predictor=decoder(),
            target=target,
            loss=squared,
        )


def test_a_target_of_another_grid_is_refused() -> None:
    backbone = wrap("test_vit", img_size=64)

    class Coarse(Pixels):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :4]

    built = Decoder(32, grid=GRID, depth=1, heads=1, embed=nn.Linear(64, 32), head=nn.Linear(32, 768))
    pretrainer = Pretrainer(
        backbone,
        plan=RandomMask(0.5),
        view=Drop(),
        predictor=built,
        target=Coarse((16, 16), channels=3),
        loss=squared,
    )
    with pytest.raises(ValueError, match="4 rows for the 16 units of 4x4"):
        pretrainer(torch.randn(1, 3, 64, 64))
