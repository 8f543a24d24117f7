"""Methods on backbones that their papers did not have: hierarchical ones, torchvision's, and rectangles."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torchvision
from torch import nn

from patchcast.backbones import Backbone, wrap
from patchcast.methods import beit, ijepa, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.targets import EMAFeatures
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.views import Drop, Paint, Replace
from tests import contracts
from tests.backbones import zoo


def swin(**kwargs) -> Backbone:
    small = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8), "window_size": 2}
    return wrap("swin_tiny_patch4_window7_224", img_size=128, **small, **kwargs)


def torchvision_vit() -> Backbone:
    vit = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96
    )
    return wrap(vit)


def codes(backbone: Backbone) -> PatchCodebook:
    down, right = backbone.stride
    return PatchCodebook(torch.randn(8, down * right * backbone.channels), backbone.stride)


def check(pretrainer: Pretrainer) -> None:
    contracts.check_no_leak(pretrainer)
    images = contracts.images_for(pretrainer)
    output = pretrainer(images)
    output.loss.backward()
    assert output.loss.isfinite()
    pretrainer.target.update(pretrainer.backbone)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_ijepa_on_swin_by_replacement(channels: int) -> None:
    pretrainer = ijepa(swin(in_chans=channels), predictor_depth=1, steps=2)
    assert isinstance(pretrainer.view, Replace)
    check(pretrainer)


@pytest.mark.parametrize("method", [mae, ijepa], ids=lambda method: method.__name__)
def test_dropping_units_of_a_stem_that_overlaps(method) -> None:
    """Hiera's tokens reach three pixels into their neighbors."""
    pretrainer = method(deepcopy(zoo.small("hiera_tiny_224")))
    assert isinstance(pretrainer.view, Drop)
    check(pretrainer)


def test_simmim_and_beit_on_swin() -> None:
    check(simmim(swin()))
    backbone = swin()
    check(beit(backbone, codes(backbone)))


@pytest.mark.parametrize("method", [mae, simmim, ijepa], ids=lambda method: method.__name__)
def test_torchvisions_vit(method) -> None:
    check(method(torchvision_vit()))


def test_mae_on_torchvisions_vit_runs_on_the_visible_units_alone() -> None:
    """The decoder takes any encoder's features: lightly's pairs timm's with timm's."""
    pretrainer = mae(torchvision_vit())
    assert isinstance(pretrainer.view, Drop)
    contracts.check_gradients(pretrainer)


def test_a_decoder_over_any_model_by_painting() -> None:
    """The decoder after a view that keeps every unit: it uses those that were seen."""
    pretrainer = mae(torchvision_vit())
    pretrainer.view = Paint()
    check(pretrainer)


def test_a_teacher_of_another_backbone() -> None:
    """Targets need not follow the student: a frozen, wider model will do (distillation under a mask)."""
    pretrainer = simmim(swin())
    pretrainer.target = EMAFeatures(swin(drop_path_rate=0.0), momentum=1.0)
    pretrainer.predictor.project = nn.Linear(pretrainer.backbone.width, pretrainer.target.outputs)
    check(pretrainer)
