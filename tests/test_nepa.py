"""Next-embedding prediction: the target is the network's own embedding, and no gradient flows through it."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from patchcast.backbones import wrap
from patchcast.backbones.projected import Projected
from patchcast.losses import cosine
from patchcast.methods import nepa
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Embeddings
from tests.backbones import zoo


def small() -> Pretrainer:
    return nepa(wrap("test_vit", img_size=32, patch_size=8, depth=2))


def test_the_loss_is_the_papers() -> None:
    """Up to the constant 1, by timm's own modules."""
    pretrainer, images = small().eval(), torch.randn(2, 3, 32, 32)
    vit = pretrainer.backbone.model
    patches = vit.patch_embed(images)  # (B, rows, cols, D)
    embedded, tokens = patches.flatten(1, 2), vit._pos_embed(patches)
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    for block in vit.blocks:
        tokens = block(tokens, attn_mask=mask)
    predicted = vit.norm(tokens)[:, 1:-1]  # without the class token and the last patch, which has no next one
    wanted = -F.cosine_similarity(predicted, embedded[:, 1:], dim=-1).mean()
    torch.testing.assert_close(pretrainer(images).loss - 1, wanted)


def test_a_unit_of_merged_patches_has_their_mean() -> None:
    backbone = copy.deepcopy(zoo.small("qwen3_vit_88m_merge"))
    assert isinstance(backbone, Projected)
    pretrainer, (down, right) = nepa(backbone), backbone.stride
    images = torch.randn(2, backbone.channels, 2 * down, 3 * right)
    patches = backbone.encoder.patch_embed(images)
    assert patches.shape[1:3] == (4, 6)
    wanted = patches.permute(0, 3, 1, 2).unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pretrainer.target(images), wanted)
    assert pretrainer(images).loss.isfinite()


def test_no_gradient_flows_through_the_target() -> None:
    pretrainer, images = small(), torch.randn(2, 3, 32, 32)
    output = pretrainer(images)
    assert not output.targets.requires_grad
    last = torch.zeros_like(images)
    last[:, :, -8:, -8:] = images[:, :, -8:, -8:]  # the last patch is a target, and nothing is predicted from it
    weight = pretrainer.backbone.model.patch_embed.proj.weight
    (without,) = torch.autograd.grad(pretrainer(images - last).loss, weight)
    assert weight.grad is None
    output.loss.backward()
    assert weight.grad is not None
    assert not torch.equal(weight.grad, without), "the target itself changes the loss"


def test_its_weights_are_saved_once_and_a_copy_has_its_own() -> None:
    pretrainer = small()
    assert isinstance(pretrainer.target, Embeddings)
    assert not any(name.startswith("target.") for name in pretrainer.state_dict())
    other = copy.deepcopy(pretrainer)
    with torch.no_grad():
        other.backbone.model.patch_embed.proj.weight.mul_(2)
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(other.target(images), pretrainer.target(images))


def test_the_embedding_has_no_position() -> None:
    pretrainer = small()
    same = torch.ones(1, 3, 32, 32)
    units = pretrainer.target(same)[0]
    torch.testing.assert_close(units, units[:1].expand_as(units))


def test_the_angle_decides() -> None:
    a, b = torch.randn(1, 1, 2, 5), torch.randn(1, 1, 2, 5)
    torch.testing.assert_close(cosine(3 * a, 0.5 * b), cosine(a, b))
    torch.testing.assert_close(cosine(a, -a), torch.full((1, 1, 2), 2.0))


def test_a_head_on_a_width_that_positions_cannot_have() -> None:
    """Sine-cosine positions need a width divisible by 4."""
    backbone = wrap("test_vit", img_size=32, patch_size=8, depth=2, embed_dim=90, num_heads=3)
    assert nepa(backbone, head_depth=2)(torch.randn(2, 3, 32, 32)).predictions.shape == (2, 1, 15, 90)
