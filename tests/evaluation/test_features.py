from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from patchcast.backbones.backbone import Backbone, Tokens
from patchcast.backbones.sequence import ViT
from patchcast.evaluation import Features, extract, extract_layers, extract_tokens, raw_pixels
from patchcast.evaluation.features import check_probe


def test_extract_is_pool_in_eval_mode(backbone, batches):
    drops = ViT(timm.create_model("test_vit", img_size=32, patch_size=8, drop_path_rate=0.9))
    drops.load_state_dict(backbone.state_dict())
    features = extract(drops.train(), batches)
    expected = torch.cat([backbone.eval().pool(images) for images, _ in batches])
    torch.testing.assert_close(features.x, expected, rtol=0, atol=1e-6)
    assert features.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert features.x.dtype == torch.float32
    assert not features.x.requires_grad


def test_features_can_be_trained_on(backbone, batches):
    features = extract(backbone, batches)
    head = nn.Linear(features.x.shape[1], 3)
    head(features.x).sum().backward()  # an inference tensor would be refused here
    assert head.weight.grad is not None


def test_modes_come_back_also_when_it_fails(backbone, batches):
    backbone.train()
    backbone.model.blocks[0].eval()
    extract(backbone, batches)
    with pytest.raises(ValueError, match="divisible by 8; got 30x32"):
        extract(backbone, [(torch.zeros(1, 3, 30, 32), torch.zeros(1, dtype=torch.long))])
    assert backbone.training
    assert backbone.model.blocks[1].training
    assert not backbone.model.blocks[0].training


def test_bfloat16_is_close_and_float32(backbone, batches):
    exact, rough = extract(backbone, batches), extract(backbone, batches, precision=torch.bfloat16)
    assert rough.x.dtype == torch.float32
    assert not torch.equal(rough.x, exact.x)
    torch.testing.assert_close(rough.x, exact.x, rtol=0, atol=0.05)


class Counting(ViT):
    """Counts the images that go through."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.seen: list[int] = []

    def to_patches(self, images) -> Tokens:
        self.seen.append(len(images))
        return super().to_patches(images)


@pytest.fixture
def counting() -> Counting:
    torch.manual_seed(0)
    return Counting(timm.create_model("test_vit", img_size=32, patch_size=8))


def test_cache_answers_the_same_without_computing(counting, batches, tmp_path):
    first = extract(counting, batches, cache=tmp_path)
    assert sum(counting.seen) == 10
    second = extract(counting, batches, cache=tmp_path)
    assert sum(counting.seen) == 10
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.labels, second.labels)


def test_cache_misses_when_anything_changes(counting, batches, tmp_path):
    extract(counting, batches, cache=tmp_path)

    def recomputed(**changes) -> int:
        counting.seen.clear()
        extract(counting, **({"loader": batches, "cache": tmp_path} | changes))
        return sum(counting.seen)

    assert recomputed() == 0
    assert recomputed(precision=torch.bfloat16) == 10
    brighter = [(images + 1e-3, labels) for images, labels in batches[:1]] + batches[1:]
    assert recomputed(loader=brighter) == 4, "only the batch that changed"
    counting.model.blocks[0].attn.num_heads = 1  # no tensor knows of it
    counting.model.blocks[0].attn.head_dim = 64
    assert recomputed() == 10
    with torch.no_grad():
        counting.model.norm.bias[0] += 1e-3
    assert recomputed() == 10


def test_cache_keeps_pooled_layers_and_tokens_apart(backbone, batches, tmp_path):
    pooled = extract(backbone, batches, cache=tmp_path)
    extract_layers(backbone, batches, cache=tmp_path)
    tokens = extract_tokens(backbone, batches, blocks=2, cache=tmp_path)
    again = extract_tokens(backbone, batches, blocks=2, cache=tmp_path)
    other = extract_tokens(backbone, batches, blocks=3, cache=tmp_path)
    assert torch.equal(extract(backbone, batches, cache=tmp_path).x, pooled.x)
    assert torch.equal(tokens.x, again.x)
    assert not torch.equal(tokens.x, other.x)


def test_layers_are_the_raw_block_outputs(backbone, batches):
    layers = extract_layers(backbone, batches)
    assert list(layers) == [0, 1, 2, 3, 4, 5]
    images = torch.cat([images for images, _ in batches])
    model = backbone.model.eval()
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for block, features in layers.items():
            x = model.blocks[block](x)
            torch.testing.assert_close(features.x, x[:, model.num_prefix_tokens :].mean(dim=1), rtol=0, atol=1e-5)


def test_tokens_average_the_chosen_blocks(backbone, batches):
    last_two, layers = extract_tokens(backbone, batches, blocks=2), extract_layers(backbone, batches)
    assert last_two.x.shape == (10, 16, 64)
    torch.testing.assert_close(last_two.x.mean(dim=1), (layers[4].x + layers[5].x) / 2)
    named = extract_tokens(backbone, batches, blocks=(4, 5))
    assert torch.equal(named.x, last_two.x)


class Bare(Backbone):
    """A backbone that timm does not know."""

    width, stride, channels = 3, (8, 8), 3

    def to_patches(self, images): ...
    def add_positions(self, patches): ...
    def run_stages(self, tokens, **mask): ...
    def split(self, features, tokens): ...


def test_layers_of_a_model_without_them_name_it(batches):
    with pytest.raises(ValueError, match="Identity cannot be probed by layer"):
        extract_layers(Bare(nn.Identity()), batches)


def test_raw_pixels_average_areas():
    images = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    labels = torch.tensor([1])
    assert raw_pixels([(images, labels)]).x.tolist() == [[0.0, 2.0, 4.0, 6.0]]
    assert raw_pixels([(images, labels)], size=(1, 2)).x.tolist() == [[2.0, 4.0]]


def test_an_empty_loader_is_refused(backbone):
    with pytest.raises(ValueError, match="yields no images"):
        extract(backbone, [])
    with pytest.raises(ValueError, match="yields no images"):
        raw_pixels([])


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.zeros(2, 3), [-1, -1], "the source has no labels; a probe needs them"),
        (torch.zeros(2, 3), [1, 1], "all 2 training images are of class 1; a probe needs two"),
        (torch.zeros(2, 4), [0, 1], r"differ in shape, \(4,\) and \(3,\)"),
        (torch.tensor([[0.0, 0, 0], [0, torch.nan, torch.inf]]), [0, 1], "of 1 of 2 training images are NaN"),
        (torch.zeros(0, 3), [], "the training set is empty"),
    ],
)
def test_what_no_probe_can_use_is_refused(x, labels, message):
    with pytest.raises(ValueError, match=message):
        check_probe(Features(x, torch.tensor(labels, dtype=torch.long)), Features(torch.zeros(1, 3), torch.tensor([0])))
