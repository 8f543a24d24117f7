"""Class tokens masked or dropped where asked, as in lightly's masked vision transformers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from patchcast.backbones import CannotError, wrap
from patchcast.losses import squared
from patchcast.plans import RandomMask
from patchcast.predictors import Decoder
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.views import Drop
from tests.backbones.zoo import BY_NAME, build, images_for, scaled


def peers(kind: str) -> tuple[nn.Module, Any, Any]:
    """A model, lightly's masked transformer over it, and lightly's helpers."""
    modules = pytest.importorskip("lightly.models.modules", reason="the peer here: pip install patchcast[peers]")
    from lightly.models import utils

    if kind == "torchvision":
        model: nn.Module = VisionTransformer(64, 16, 2, 2, 48, 96)
        theirs = modules.MaskedVisionTransformerTorchvision(model)
    else:
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3)
        theirs = modules.MaskedVisionTransformerTIMM(model)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, theirs.eval(), utils


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_equal_to_lightly(kind: str) -> None:
    model, theirs, utils = peers(kind)
    backbone = wrap(model).eval()
    images = torch.randn(8, 3, 64, 64)
    keep, mask = utils.random_token_mask((8, 17), 0.5, mask_class_token=True)
    hidden = torch.zeros(8, 17, dtype=torch.bool).scatter(1, mask, True)
    assert 0 < hidden[:, 0].sum() < 8  # of some images the class token is masked, and of some not
    tokens = backbone.embed(
        images,
        is_hidden=hidden[:, 1:].view(8, 4, 4),
        mask_token=theirs.mask_token.flatten(),
        is_hidden_prefix=hidden[:, :1],
    )
    torch.testing.assert_close(
        backbone.forward_stages(tokens), theirs.encode(images, idx_mask=mask), atol=1e-5, rtol=1e-5
    )
    tokens = backbone.keep_rows(backbone.embed(images), keep)
    features = backbone.forward_stages(tokens)
    torch.testing.assert_close(features, theirs.encode(images, idx_keep=keep), atol=1e-5, rtol=1e-5)
    prefix, units = backbone.split(features, tokens)
    assert prefix.shape[1] == 0
    assert units.shape == (8, keep.shape[1], 48)
    with pytest.raises(ValueError, match="dropped before"):
        backbone.keep_rows(tokens, keep)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224"]
)
def test_a_dropped_class_token_is_one_that_nothing_looks_at(name: str) -> None:
    backbone = build(name, **BY_NAME[name])
    images = images_for(backbone)
    tokens = backbone.embed(images)
    length, front = tokens.x.shape[1], tokens.prefix
    rows = torch.arange(front, length).expand(len(images), -1)
    can_see = torch.ones(length, length, dtype=torch.bool)
    can_see[front:, :front] = False
    with torch.no_grad():
        alone = backbone.forward_stages(backbone.keep_rows(tokens, rows))
        whole = backbone.forward_stages(tokens, can_see=can_see)[:, front:]
    assert scaled(alone, whole) < 1e-5


def test_a_masked_autoencoder_without_class_tokens() -> None:
    backbone = wrap("test_vit", img_size=64)
    decoder = Decoder(
        32, grid=backbone.grid((64, 64)), depth=1, heads=1, embed=nn.Linear(64, 32), head=nn.Linear(32, 768)
    )
    pretrainer = Pretrainer(
        backbone,
        plan=RandomMask(0.75),
        view=Drop(prefix=False),
        predictor=decoder,
        target=Pixels((16, 16), channels=3),
        loss=squared,
    )
    loss = pretrainer(torch.randn(2, 3, 64, 64)).loss
    loss.backward()
    assert not backbone.model.cls_token.grad.any()
    assert decoder.mask_token.grad is not None


def test_what_cannot_do_without_says_so() -> None:
    eva = build("vit_tiny_patch16_dinov3_qkvb", **BY_NAME["vit_tiny_patch16_dinov3_qkvb"])
    tokens = eva.embed(images_for(eva))
    rows: Tensor = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(CannotError, match="its rotary positions need them"):
        eva.keep_rows(tokens, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swin = wrap("swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1))
    with pytest.raises(CannotError, match="no place for a mask token among its class and register tokens"):
        swin.embed(torch.zeros(1, 3, 64, 64), is_hidden_prefix=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(CannotError, match="cannot run without its class"):
        swin.keep_rows(swin.embed(torch.zeros(1, 3, 64, 64)), rows[:1])
    with pytest.raises(ValueError, match="is_hidden_prefix is for 2 prefix tokens"):
        wrap("test_vit", img_size=32).embed(
            torch.zeros(1, 3, 32, 32), is_hidden_prefix=torch.ones(1, 2, dtype=torch.bool)
        )
