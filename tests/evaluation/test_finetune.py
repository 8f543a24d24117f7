from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from patchcast.backbones.sequence import ViT
from patchcast.evaluation import Classifier, finetune, layer_decay_groups

from .test_features import Bare


@pytest.fixture
def small() -> ViT:
    torch.manual_seed(0)
    return ViT(timm.create_model("test_vit", img_size=16, patch_size=8))


def tints(count: int, *, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 32 noisy images; the class is which of the three channels is brighter."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 3, (32,), generator=generator)
        images = torch.randn(32, 3, 16, 16, generator=generator)
        images[torch.arange(32), labels] += 0.5
        batches.append((images, labels))
    return batches


def test_learns_and_leaves_the_given_backbone_alone(small):
    before = {name: x.clone() for name, x in small.state_dict().items()}
    result = finetune(small, tints(20, seed=0), tints(5, seed=1), classes=3, layer_decay=0.9)
    assert result.accuracy > 0.9
    assert result.accuracy == result.correct.double().mean()
    assert all(torch.equal(x, before[name]) for name, x in small.state_dict().items())
    moved = result.model.backbone.model
    assert not torch.equal(moved.patch_embed.proj.weight, before["model.patch_embed.proj.weight"])


@pytest.mark.parametrize("num_classes", [0, 10])
def test_each_block_learns_slower_than_the_next(num_classes):
    """Whether or not timm's model has a head of its own, which would count as a layer."""
    backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=num_classes))
    model = Classifier(backbone, 3)
    groups = layer_decay_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    vit = backbone.model
    assert rate[id(model.classify.weight)] == 1.0
    assert rate[id(vit.norm.weight)] == rate[id(vit.blocks[5].mlp.fc2.weight)] == pytest.approx(0.5)
    assert rate[id(vit.blocks[0].attn.qkv.weight)] == pytest.approx(0.5**6)
    assert rate[id(vit.patch_embed.proj.weight)] == rate[id(vit.pos_embed)] == pytest.approx(0.5**7)
    assert decay[id(vit.blocks[0].attn.qkv.weight)] == decay[id(model.classify.weight)] == 0.1
    for undecayed in (vit.norm.weight, vit.pos_embed, vit.cls_token, vit.patch_embed.proj.bias, model.classify.bias):
        assert decay[id(undecayed)] == 0.0
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == set(rate)
    assert not trained & {id(p) for p in backbone.unused_parameters()}


def test_seeded_and_leaves_global_randomness_alone():
    torch.manual_seed(0)
    drops = ViT(timm.create_model("test_vit", img_size=16, patch_size=8, drop_path_rate=0.5))
    run = tints(2, seed=0)
    state = torch.random.get_rng_state()
    first, again, other = (finetune(drops, run, run, classes=3, seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(first.classify.weight, again.classify.weight)
    assert not torch.equal(first.classify.weight, other.classify.weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.training


def test_errors(small):
    images = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match="the source has no labels"):
        finetune(small, [(images, torch.tensor([0, -1]))], [], classes=2)
    with pytest.raises(ValueError, match="label 5 is not below the number of classes, 2"):
        finetune(small, [(images, torch.tensor([0, 5]))], [], classes=2)
    with pytest.raises(ValueError, match=r"Identity has no group_matcher in timm"):
        layer_decay_groups(Classifier(Bare(nn.Identity()), 2), lr=1.0, weight_decay=0.0, layer_decay=0.5)
