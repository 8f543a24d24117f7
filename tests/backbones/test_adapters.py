"""`wrap`: from names and models to backbones, and what it says where it cannot."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from patchcast.backbones import CannotError, Painted, wrap
from patchcast.geometry import take
from tests.backbones.zoo import NAMES, assert_same, images_for, marked, randomize, scaled, small


def test_an_unknown_name_is_told_what_is_near() -> None:
    with pytest.raises(ValueError, match="did you mean vit_tiny_patch16_224"):
        wrap("vit_tinny_patch16_224")


def test_a_built_model_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="already built"):
        wrap(timm.create_model("test_vit"), in_chans=4)


def test_the_size_of_a_built_model_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match=r"built for \(224, 224\), which img_size=\(64, 64\) cannot change"):
        wrap(timm.create_model("vit_tiny_patch16_224", depth=1), img_size=64)


def test_the_nominal_size_of_a_model_of_any_size_can_be_told() -> None:
    assert wrap(timm.create_model("pvt_v2_b0"), img_size=(64, 96)).image_size == (64, 96)


def test_a_subclass_of_a_known_class_is_known() -> None:
    class Mine(timm.models.VisionTransformer):
        pass

    model = Mine(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    Mine.__module__ = "somebody.models"
    assert type(wrap(model)).__name__ == "ViT"


def test_a_foreign_class_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"no adapter knows Linear; .*Painted.*add-a-backbone"):
        wrap(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_mambaout", "test_efficientnet"])
def test_any_other_model_of_timm_is_painted(name: str) -> None:
    with pytest.warns(UserWarning, match='so all it can do is "paint"'):
        backbone = wrap(name).eval()
    assert isinstance(backbone, Painted)
    images = images_for(backbone)
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))
        assert backbone.units(images).shape[1:] == (backbone.grid(images).units, backbone.width)
    with pytest.raises(CannotError, match=r"cannot run on the visible units alone \('drop'\); it can run on images"):
        backbone.keep(backbone.embed(images), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(CannotError, match="cannot put a mask token"):
        backbone.embed(images, is_hidden=torch.zeros(2, *backbone.grid(images), dtype=torch.bool))


@pytest.mark.parametrize("name", marked(NAMES))
def test_the_models_keys_stay(name: str) -> None:
    backbone = small(name)
    assert [key.removeprefix("model.") for key in backbone.state_dict()] == list(backbone.model.state_dict())


@pytest.mark.parametrize("name", marked(NAMES))
def test_what_is_not_declared_is_refused(name: str) -> None:
    backbone = small(name)
    tokens = backbone.embed(images_for(backbone))
    if "drop" not in backbone.can:
        with pytest.raises(CannotError, match="cannot run on the visible units alone"):
            backbone.keep(tokens, torch.zeros(2, 1, dtype=torch.long))
    if "attend" not in backbone.can:
        with pytest.raises(CannotError, match="cannot apply any attention mask"):
            backbone.forward_stages(tokens, is_causal=True)


def test_patch_dropout_of_timms_own_is_refused() -> None:
    for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "hiera_tiny_224"):
        with pytest.raises(ValueError, match="patch_drop_rate"):
            wrap(name, patch_drop_rate=0.5)


# ---- torchvision ----------------------------------------------------------------------------------------------------


def test_torchvision_vit() -> None:
    model = VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=5
    )
    randomize(model)
    backbone = wrap(model).eval()
    images = images_for(backbone)
    order = torch.stack([torch.randperm(16) for _ in images])
    with torch.no_grad():
        assert_same(model.heads(backbone(images)[:, 0]), model(images))
        tokens = backbone.keep(backbone.embed(images), order)
        shuffled = backbone.split(backbone.forward_stages(tokens), tokens)[1]
        assert scaled(shuffled, take(backbone.units(images), order)) < 1e-5
    assert sorted(backbone.can) == ["drop", "paint", "replace"]


@pytest.mark.parametrize("version", [1, 2])
def test_torchvision_swin(version: int) -> None:
    from torchvision.models import swin_transformer as swin

    parts = {} if version == 1 else {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    model = SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=5, **parts
    )
    backbone = wrap(model, img_size=(64, 32)).eval()
    assert backbone.stride == (8, 8)
    images = images_for(backbone)
    with torch.no_grad():
        pooled = model.flatten(model.avgpool(model.permute(backbone(images))))
        assert_same(model.head(pooled), model(images))
        assert backbone.units(images).shape == (2, 32, 48)
        is_hidden = torch.zeros(2, 8, 4, dtype=torch.bool)
        is_hidden[:, :4] = True
        changed = images.clone()
        changed[..., :32, :] += 1
        token = torch.randn(backbone.embed_width)
        features = [
            backbone.forward_stages(backbone.embed(each, is_hidden=is_hidden, mask_token=token))
            for each in (images, changed)
        ]
        assert_same(*features)
