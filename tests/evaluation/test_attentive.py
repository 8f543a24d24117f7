from __future__ import annotations

import pytest
import torch

from patchcast.evaluation import AttentiveProbe, Features, TokenFeatures, attentive_probe, linear_probe


def test_is_aims_probe_written_out_plainly():
    torch.manual_seed(0)
    probe = AttentiveProbe(width=12, heads=3, classes=5).train()
    tokens = 3 + 2 * torch.randn(6, 7, 12)
    flat = tokens.flatten(0, 1)
    x = (tokens - flat.mean(dim=0)) / (flat.var(dim=0, correction=0) + 1e-6).sqrt()
    key, value = x @ probe.key.weight.T, x @ probe.value.weight.T
    pooled = torch.zeros(6, 12)
    for head in range(3):
        of_head = slice(4 * head, 4 * head + 4)
        attention = (key[..., of_head] @ probe.query[0, of_head] / 4**0.5).softmax(dim=1)
        pooled[:, of_head] = (attention[..., None] * value[..., of_head]).sum(dim=1)
    torch.testing.assert_close(probe(tokens), pooled @ probe.classify.weight.T, rtol=1e-4, atol=1e-5)
    names = {name: tuple(p.shape) for name, p in probe.named_parameters()}
    assert names == {"query": (1, 12), "key.weight": (12, 12), "value.weight": (12, 12), "classify.weight": (5, 12)}


def needle(images: int, seed: int) -> TokenFeatures:
    """One unit in 16, anywhere, is marked and carries the class; all others shout one at random: the mean is no use."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (images,), generator=generator)
    x = 0.1 * torch.randn(images, 16, 8, generator=generator)
    others = torch.randint(0, 3, (images, 16), generator=generator)
    x.scatter_(2, others[..., None], 1.0)
    place = torch.randint(0, 16, (images,), generator=generator)
    rows = torch.arange(images)
    x[rows, place] = 0
    x[rows, place, labels] = 1
    x[rows, place, 7] = 3
    return TokenFeatures(x, labels * 2 + 1)


def test_finds_what_the_mean_loses():
    train, test = needle(600, 0), needle(300, 1)
    result = attentive_probe(train, test, heads=1, lrs=[1e-2], epochs=30, batch_size=100)
    pooled = [Features(each.x.mean(dim=1), each.labels) for each in (train, test)]
    assert result.accuracy > 0.95
    assert linear_probe(*pooled, strengths=(0.1,)).accuracy < 0.75
    assert result.correct.double().mean() == result.accuracy


def test_seeded_and_leaves_global_randomness_alone():
    train, test = needle(60, 0), needle(60, 1)

    def weight(seed: int) -> torch.Tensor:
        torch.rand(1)  # so that the global state is another at each call
        state = torch.random.get_rng_state()
        result = attentive_probe(train, test, heads=2, lrs=[1e-2], epochs=2, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return result.probe.classify.weight

    first, again, other = weight(0), weight(0), weight(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rate_is_chosen_on_held_out_images_only():
    train, test = needle(600, 0), needle(100, 1)
    wrong = TokenFeatures(test.x, 6 - test.labels)
    right, misled = (
        attentive_probe(train, each, heads=1, lrs=(1e-6, 1e-2), epochs=15, batch_size=60) for each in (test, wrong)
    )
    assert right.lr == 1e-2
    assert right.validation[1e-6] < 0.5 < 0.8 < right.validation[1e-2]
    assert misled.validation == right.validation
    assert torch.equal(misled.probe.query, right.probe.query)


def test_errors():
    with pytest.raises(ValueError, match="divisible by its heads; got 10 and 4"):
        AttentiveProbe(10, 4, 2)
    unlabeled = TokenFeatures(torch.zeros(2, 3, 4), torch.tensor([-1, -1]))
    with pytest.raises(ValueError, match="the source has no labels"):
        attentive_probe(unlabeled, unlabeled, heads=1)
