"""Completing images: every drawn unit is what the model predicts there, whichever way it was computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from patchcast.backbones import Backbone, CannotError, wrap
from patchcast.backbones.aim_network import aim_vit
from patchcast.backbones.cached_blocks import can_cache
from patchcast.drawing import completion
from patchcast.drawing.completion import complete_pixels
from patchcast.methods import ORDERS, aim, aim_codes, aim_features, mae
from patchcast.plans import OrderPlan
from patchcast.pretrainer import Pretrainer
from patchcast.targets import patchify
from patchcast.tokenizers.patches import PatchCodebook
from tests import contracts
from tests.backbones import zoo

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "plain": lambda: wrap("test_vit", img_size=(12, 16), patch_size=4, in_chans=1, depth=2),
    "registers and layer scale": lambda: zoo.sequence("registers", img_size=16, patch_size=4, in_chans=1),
    "aim": lambda: wrap(aim_vit("0.6B", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, in_chans=1)),
    "rotary": lambda: zoo.sequence("rotary", img_size=16, patch_size=4, in_chans=1),
}


def raw(backbone: str, order: str = "raster", seed: int = 0) -> Pretrainer:
    torch.manual_seed(seed)
    return contracts.perturbed(aim(BACKBONES[backbone](), plan=ORDERS[order], head_depth=1, normalize=False)).eval()


def plan_of(pretrainer: Pretrainer, images: Tensor, prefix: int) -> OrderPlan:
    plan = pretrainer.draw(images, torch.Generator().manual_seed(3))
    assert isinstance(plan, OrderPlan)
    given = prefix if bool(plan.prefix.all()) else 0
    return OrderPlan(plan.grid, plan.order, torch.full_like(plan.prefix, given), is_raster=plan.is_raster)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_drawn_is_what_is_predicted(backbone: str, order: str) -> None:
    pretrainer, prefix = raw(backbone, order), 5
    images = contracts.images_for(pretrainer, batch=3)
    completed = complete_pixels(pretrainer, images, prefix, generator=torch.Generator().manual_seed(3))
    plan = plan_of(pretrainer, images, prefix)
    with torch.no_grad():
        predictions = pretrainer(completed, plan).predictions[:, 0]
    units, before = patchify(completed, (4, 4)), patchify(images, (4, 4))
    for image, turn in enumerate(plan.order):
        assert torch.equal(units[image, turn[:prefix]], before[image, turn[:prefix]]), "the prefix is kept"
        torch.testing.assert_close(units[image, turn[prefix:]], predictions[image, prefix - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "rotary"])
def test_with_and_without_cache(backbone: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrainer = raw(backbone, order)
    assert can_cache(pretrainer.backbone)
    images = contracts.images_for(pretrainer)
    for prefix in (1, 7):
        cached = complete_pixels(pretrainer, images, prefix, generator=torch.Generator().manual_seed(3))
        with monkeypatch.context() as patch:
            patch.setattr(completion, "can_cache", lambda _: False)
            anew = complete_pixels(pretrainer, images, prefix, generator=torch.Generator().manual_seed(3))
        assert not torch.equal(cached, images)
        torch.testing.assert_close(cached, anew, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["plain", "rotary"])
def test_hidden_pixels_are_not_looked_at(backbone: str) -> None:
    pretrainer = raw(backbone)
    images = contracts.images_for(pretrainer)
    other = images.clone()
    other[:, :, 8:] = torch.nan
    assert torch.equal(complete_pixels(pretrainer, images, 8), complete_pixels(pretrainer, other, 8))


def test_a_whole_prefix_leaves_the_image() -> None:
    pretrainer = raw("plain").train()
    images = contracts.images_for(pretrainer)
    assert torch.equal(complete_pixels(pretrainer, images, 12), images)
    assert pretrainer.training


def test_what_cannot_be_drawn() -> None:
    backbone = BACKBONES["plain"]()
    images = torch.randn(1, 1, 12, 16)
    codebook = PatchCodebook(torch.randn(4, 16), (4, 4))
    for pretrainer, told in (
        (aim(backbone, head_depth=1), "normalize=False"),
        (aim_codes(backbone, codebook, head_depth=1), "Codes are not pixels"),
        (aim_features(backbone, head_depth=1), "EMAFeatures are not pixels"),
        (mae(backbone), "only methods that predict in order"),
    ):
        with pytest.raises(CannotError, match=told):
            complete_pixels(pretrainer, images, 4)
    for prefix in (0, 13):
        with pytest.raises(ValueError, match=f"1 to 12 units; got {prefix}"):
            complete_pixels(raw("plain"), images, prefix)


@pytest.mark.parametrize("order", ["raster", pytest.param("random", marks=pytest.mark.slow)])
def test_one_image_is_learned_and_completed(order: str) -> None:
    pretrainer = aim(BACKBONES["plain"](), plan=ORDERS[order], head_width=64, head_depth=1, normalize=False)
    image = torch.randn(1, 1, 12, 16)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(250):
        optimizer.zero_grad()
        pretrainer(image.expand(8, -1, -1, -1)).loss.backward()
        optimizer.step()
    error = (complete_pixels(pretrainer, image, 2) - image).square().mean()
    assert error < 0.1 * image.square().mean()
