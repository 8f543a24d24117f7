"""Models that are not quite their library's: built at another size, subclassed, or patched."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from patchcast.backbones import CannotError, wrap
from tests.backbones.zoo import assert_same

# Classes whose instances are built for one size, wherever they keep it, as small as they come.
BUILT: dict[str, dict[str, Any]] = {
    "mvitv2_tiny": {},
    "tnt_s_patch16_224": {"depth": 2},
    "tnt_s_legacy_patch16_224": {"depth": 2},
    "coat_tiny": {},
    "coat_lite_tiny": {},
    "levit_128s": {},
    "levit_conv_128s": {},
    "volo_d1_224": {},
    "gcvit_xxtiny": {},
    "efficientformerv2_s0": {},
    "mobilevitv2_050": {},
    "botnet26t_256": {},
    "lambda_resnet26rpt_256": {},
    "vit_tiny_patch16_224": {"depth": 1},
    "beit_base_patch16_224": {"depth": 1},
    "cait_xxs24_224": {"depth": 2},
    "convit_tiny": {"depth": 2},
    "crossvit_tiny_240": {},
    "eva02_tiny_patch14_224": {"depth": 1, "patch_size": 16},
    "hiera_tiny_224": {},
    "maxvit_tiny_rw_224": {},
    "nest_tiny": {},
    "pit_ti_224": {},
    "swin_tiny_patch4_window7_224": {},
    "swinv2_cr_tiny_ns_224": {},
    "vit_relpos_small_patch16_224": {"depth": 1},
    "visformer_tiny": {},
}
SIDE = {"crossvit_tiny_240": 120, "coat_tiny": 128}


@pytest.mark.parametrize("name", BUILT)
def test_an_instance_is_taken_at_the_size_that_it_was_built_for(name: str) -> None:
    """And at no other, unless the model itself takes others."""
    side = SIDE.get(name, 64)
    try:
        model = timm.create_model(name, img_size=side, **BUILT[name]).eval()
    except TypeError:  # visformer, for example, in some versions
        pytest.skip("takes no img_size")
    backbone = wrap(model)
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert_same(backbone(images), model.forward_features(images))
    assert backbone.units(images).shape[1] == backbone.grid(images).units
    assert backbone.image_size == (side, side) or backbone.takes_any_size
    if not backbone.takes_any_size:
        with pytest.raises(ValueError, match=r"takes|divi"):
            backbone.grid((224, 224))
        with pytest.raises(ValueError, match=r"was built for|do not divide"):
            wrap(model, img_size=224)


def test_an_instance_that_is_not_square_is_taken_too() -> None:
    for name in ("tnt_s_patch16_224", "volo_d1_224", "levit_128s", "coat_lite_tiny", "efficientformerv2_s0"):
        backbone = wrap(timm.create_model(name, img_size=(64, 96)))
        assert backbone.image_size == (64, 96), name


def test_mobilevit_refuses_sizes_that_it_would_resample() -> None:
    backbone = wrap(timm.create_model("mobilevitv2_050"))
    assert backbone.grid((64, 128)) == (2, 4)
    with pytest.raises(ValueError, match="attention of this ByobNet does not take images of 96x96"):
        backbone.grid((96, 96))


# ---- subclasses, and patches -----------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


class DoubleFeatures(VisionTransformer):
    def forward_features(self, x: Tensor, **kwargs: Any) -> Tensor:
        return 2 * super().forward_features(x, **kwargs)


class OtherPositions(VisionTransformer):
    def _pos_embed(self, x: Tensor) -> Tensor:
        return 3 * super()._pos_embed(x)


class OtherHead(VisionTransformer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return -x[:, 0]


class NegativeBlock(Block):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return -super().forward(x, **kwargs)


class NegativeAttention(Attention):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return -super().forward(x, **kwargs)


def patched_on_the_instance() -> nn.Module:
    model = VisionTransformer(**SMALL)
    own = model.forward_features
    model.forward_features = types.MethodType(lambda self, x: 2 * own(x), model)
    return model


def torchvision_subclass() -> nn.Module:
    class Tripled(TorchvisionViT):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    return Tripled(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=24)


def torchvision_encoder() -> nn.Module:
    model = TorchvisionViT(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=24)
    model.encoder.forward = lambda x: x
    return model


def naflex_embeds() -> nn.Module:
    model = timm.create_model("naflexvit_base_patch16_gap", depth=1)
    own = model.embeds.forward
    model.embeds.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DoubleFeatures(**SMALL), "DoubleFeatures is no plain VisionTransformer of timm: it has a forward_fe"),
        (patched_on_the_instance, "has a forward_features that this backbone would not call"),
        (torchvision_subclass, "Tripled is no plain VisionTransformer of torchvision: it has a forward that"),
        (torchvision_encoder, "encoder is no plain Encoder of torchvision: it has a forward that"),
        (naflex_embeds, "embeds is no plain NaFlexEmbeds of timm"),
    ],
)
def test_what_would_be_written_over_is_refused(build: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wrap(build())


def test_a_patch_of_the_class_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = VisionTransformer.forward_features
    monkeypatch.setattr(VisionTransformer, "forward_features", lambda self, x: 2 * own(self, x))
    with pytest.raises(ValueError, match="forward_features that this backbone"):
        wrap(timm.create_model("test_vit"))


@pytest.mark.parametrize("cls", [OtherPositions, OtherHead])
def test_what_is_called_may_be_another(cls: type[VisionTransformer]) -> None:
    model = cls(**SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    backbone = wrap(model)
    assert_same(backbone(images), model.forward_features(images))
    assert {"drop", "attend"} <= backbone.can


@pytest.mark.parametrize("part", [{"block_fn": NegativeBlock}, {"attn_layer": NegativeAttention}])
def test_blocks_of_another_kind_are_run_but_not_trusted_with_masks(part: dict[str, Any]) -> None:
    model = VisionTransformer(**SMALL, **part).eval()
    images = torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"not its library's \(Negative"):
        backbone = wrap(model)
    assert_same(backbone(images), model.forward_features(images))
    assert backbone.can == {"replace", "paint"}
    with pytest.raises(CannotError):
        backbone.keep(backbone.embed(images), torch.zeros(2, 1, dtype=torch.long))


def test_attention_of_another_kind_keeps_its_class() -> None:
    """Beit's is given a subclass where it is timm's; a user's would lose what it overrides."""

    class Scaled(BeitAttention):
        def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
            return 5 * super().forward(x, shared_rel_pos_bias)

    model = timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=3).eval()
    model.blocks[0].attn.__class__ = Scaled
    images = torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="Scaled"):
        backbone = wrap(model)
    assert type(model.blocks[0].attn) is Scaled
    assert_same(backbone(images), model.forward_features(images))
    assert "drop" not in backbone.can


def test_a_stem_of_another_kind_is_not_trusted_with_pixels() -> None:
    class Overlapping(nn.Module):
        patch_size = (8, 8)
        img_size = (32, 32)

        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 24, 9, stride=8, padding=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).flatten(2).transpose(1, 2)

    model = VisionTransformer(**SMALL).eval()
    model.patch_embed = Overlapping()
    backbone = wrap(model)
    images = torch.randn(2, 3, 32, 32)
    assert_same(backbone(images), model.forward_features(images))
    assert not backbone.pixels_stay_in_unit  # so that hidden pixels are blanked, and AIM is refused


def test_adapters_in_linear_layers_are_welcome() -> None:
    """As LoRA puts them: a module around a linear map, inside timm's attention and MLP."""

    class Low(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.low = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.low(x)

    model = VisionTransformer(**SMALL).eval()
    for block in model.blocks:
        block.attn.qkv, block.mlp.fc1 = Low(block.attn.qkv), Low(block.mlp.fc1)
    images = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = wrap(model)
    assert {"drop", "attend"} <= backbone.can
    assert_same(backbone(images), model.forward_features(images))


def test_a_model_may_be_wrapped_twice() -> None:
    for name in ("beit_base_patch16_224", "cait_xxs24_224", "vit_relpos_small_patch16_224"):
        model = timm.create_model(name, img_size=32, depth=1)
        assert wrap(model).can == wrap(model).can >= {"drop", "attend"}
