"""stable-pretraining's iGPT: the same loss once its mask is turned round; and what it cannot do."""

from __future__ import annotations

import pytest
import timm
import torch

from patchcast.backbones import CannotError
from patchcast.honesty import no_leak
from patchcast.interop.stable_pretraining import iGPT


def test_five_channels_and_not_square() -> None:
    pretrainer = iGPT("vit_tiny_patch16_224", patch_size=8, image_size=(16, 32), in_channels=5)
    images = torch.randn(2, 5, 16, 32)
    output = pretrainer(images)
    assert output.predictions.shape == (2, 1, 7, 5 * 64)
    output.loss.backward()
    pretrainer.eval()
    assert pretrainer(images).loss > 0  # a real loss in eval mode as well
    assert no_leak(pretrainer, images, pretrainer.draw(images)).honest


def test_a_model_of_ones_own() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    assert iGPT(model, patch_size=8, image_size=32).backbone.model is model
    with pytest.raises(ValueError, match="patches of 8x8 pixels and 3 channels; asked for 16x16 and 5"):
        iGPT(model, patch_size=16, image_size=32, in_channels=5)
    with pytest.raises(ValueError, match="32x32 only"):
        iGPT(model, patch_size=8, image_size=64)
    with pytest.raises(CannotError):
        iGPT(timm.create_model("swin_tiny_patch4_window7_224"), patch_size=32)


def test_the_peers_loss_with_its_mask_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("stable_pretraining.methods.igpt", reason="needs the bench extra")
    turned = peer._causal_mask
    monkeypatch.setattr(peer, "_causal_mask", lambda count, device: ~turned(count, device))
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=3)
    theirs = peer.iGPT(model, patch_size=8, image_size=32).train()
    ours = iGPT(model, patch_size=8, image_size=32)
    with torch.no_grad():  # theirs in the order channel, row, column
        by_pixel = theirs.head.weight.view(3, 8, 8, -1).permute(1, 2, 0, 3).reshape(192, -1)
        ours.predictor.project.weight.copy_(by_pixel)
        ours.predictor.project.bias.copy_(theirs.head.bias.view(3, 8, 8).permute(1, 2, 0).flatten())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(images).loss, theirs(images).loss, atol=1e-5, rtol=1e-5)
