"""SimMIM against transformers' masked image modelling, and the views that keep hidden units in the context."""

from __future__ import annotations

import re

import pytest
import torch

from patchcast.backbones import wrap
from patchcast.interop.mae_weights import join_qkv, paper_names
from patchcast.methods import simmim
from patchcast.plans import GridMask, MaskPlan
from patchcast.pretrainer import Pretrainer
from patchcast.targets import patchify
from patchcast.views import Paint, Replace
from tests.peers import wake

SIZE, PATCH = 64, 16


def vit(**kwargs) -> Pretrainer:
    return simmim(
        wrap("vit_tiny_patch16_224", img_size=SIZE, embed_dim=48, depth=2, num_heads=4, **kwargs), mask_size=32
    )


def rows_of_pixel_shuffle(channels: int, stride: int) -> torch.Tensor:
    """Where each value of our units stands in the output of a 1x1 convolution that PixelShuffle spreads out."""
    place = torch.arange(channels * stride**2).view(channels, stride, stride)
    return place.permute(1, 2, 0).flatten()


def test_equals_transformers_vit() -> None:
    """A 1x1 convolution and PixelShuffle are our linear head with its outputs in another order."""
    transformers = pytest.importorskip("transformers", reason="the peer here: pip install patchcast[peers]")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=SIZE,
        patch_size=PATCH,
        encoder_stride=PATCH,
        layer_norm_eps=1e-6,
    )
    model = wake(transformers.ViTForMaskedImageModeling(config)).eval()
    pretrainer = vit().eval()
    state = model.state_dict()
    order = rows_of_pixel_shuffle(3, PATCH)
    head = {each: state.pop(f"decoder.0.{each}").flatten(1 if each == "weight" else 0) for each in ("weight", "bias")}
    mask_token = state.pop("vit.embeddings.mask_token").flatten()
    pretrainer.backbone.model.load_state_dict(paper_names(state), strict=False)
    with torch.no_grad():
        pretrainer.view.mask_token.copy_(mask_token)
        pretrainer.predictor.project.weight.copy_(head["weight"][order])
        pretrainer.predictor.project.bias.copy_(head["bias"][order])

    images = torch.randn(3, 3, SIZE, SIZE)
    plan = GridMask(0.5, cell=2)(pretrainer.backbone.grid(images), 3)
    output = pretrainer(images, plan)
    expected = model(images, bool_masked_pos=plan.is_hidden.flatten(1))
    units = patchify(expected.reconstruction, (PATCH, PATCH))
    theirs = units.gather(1, plan.predict[:, 0, :, None].expand(-1, -1, units.shape[-1]))
    torch.testing.assert_close(output.predictions[:, 0], theirs, atol=1e-5, rtol=1e-5)
    # Theirs divides by the hidden pixels plus 1e-5, and by the channels.
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)
    output.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(pretrainer.view.mask_token.grad, model.vit.embeddings.mask_token.grad.flatten())
    torch.testing.assert_close(
        pretrainer.backbone.model.patch_embed.proj.weight.grad,
        model.vit.embeddings.patch_embeddings.projection.weight.grad,
        atol=1e-5,
        rtol=1e-4,
    )


def swin_name(name: str) -> str:
    """timm's name for a parameter of transformers' Swin, whose stages end in the downsampling that ours begin with."""
    name = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    for pattern, replacement in SWIN:
        name = re.sub(pattern, replacement, name)
    return name


SWIN = (
    (r"^swin\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^swin\.embeddings\.norm", "patch_embed.norm"),
    (r"^swin\.(encoder\.)?", ""),
    (r"\.relative_position_bias\.relative_position_bias_table", ".relative_position_bias_table"),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
)


def test_equals_transformers_swin() -> None:
    """SimMIM's own backbone: mask tokens on a grid of 4 pixels, predictions on one of 32."""
    transformers = pytest.importorskip("transformers", reason="the peer here: pip install patchcast[peers]")
    shape = {"embed_dim": 16, "window_size": 2}
    backbone = wrap("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), **shape)
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], encoder_stride=32, **shape
    )
    model = wake(transformers.SwinForMaskedImageModeling(config)).eval()
    pretrainer = simmim(backbone).eval()
    assert pretrainer.plan == GridMask(0.6, cell=1)
    state, order = model.state_dict(), rows_of_pixel_shuffle(3, 32)
    head = {each: state.pop(f"decoder.0.{each}").flatten(1 if each == "weight" else 0) for each in ("weight", "bias")}
    mask_token = state.pop("swin.embeddings.mask_token").flatten()
    renamed = join_qkv({swin_name(name): value for name, value in state.items()})
    missing = backbone.model.load_state_dict(renamed, strict=False)
    assert not missing.unexpected_keys
    assert all("head" in name or "relative_position_index" in name for name in missing.missing_keys)
    with torch.no_grad():
        pretrainer.view.mask_token.copy_(mask_token)
        pretrainer.predictor.project.weight.copy_(head["weight"][order])
        pretrainer.predictor.project.bias.copy_(head["bias"][order])
    for module in backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps

    images = torch.randn(3, 3, 64, 64)
    plan = GridMask(0.5, cell=1)(backbone.grid(images), 3)
    hidden = plan.is_hidden.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).flatten(1)
    output, expected = pretrainer(images, plan), model(images, bool_masked_pos=hidden)
    units = patchify(expected.reconstruction, (32, 32))
    theirs = units.gather(1, plan.predict[:, 0, :, None].expand(-1, -1, units.shape[-1]))
    torch.testing.assert_close(output.predictions[:, 0], theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "patch", "cell"), [(224, 16, 2), (224, 32, 1), (192, 16, 2), (224, 14, 2), (64, 8, 1), (32, 4, 1)]
)
def test_what_is_hidden_together_is_32_pixels_or_a_sixth(size: int, patch: int, cell: int) -> None:
    assert simmim(wrap("test_vit", img_size=size, patch_size=patch)).plan.cell == cell


@pytest.mark.parametrize("kind", [Replace, Paint])
def test_hidden_pixels_do_not_matter_and_visible_ones_do(kind: type) -> None:
    backbone = wrap("test_vit", img_size=64)
    view = kind(backbone.embed_width) if kind is Replace else kind()
    images = torch.randn(2, 3, 64, 64)
    plan = GridMask(0.5, cell=2)(backbone.grid(images), 2)
    hidden = plan.is_hidden.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)[:, None]
    wake(view)
    before = view(backbone, images, plan)
    assert before.units.shape == (2, 16, 64)
    assert before.at is None
    assert torch.equal(view(backbone, torch.where(hidden, 9.0, images), plan).units, before.units)
    assert not torch.equal(view(backbone, torch.where(hidden, images, 9.0), plan).units, before.units)


def test_the_mask_token_takes_the_place_of_hidden_units_only() -> None:
    backbone = wrap("test_vit", img_size=64)
    view, images = Replace(backbone.embed_width), torch.randn(2, 3, 64, 64)
    everything = torch.arange(16).expand(2, -1)
    plan = MaskPlan(backbone.grid(images), everything, everything[:, None, :1])
    assert torch.equal(view(backbone, images, plan).units, backbone.units(images))
