from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from patchcast.evaluation import Features, linear_probe, logistic_path


@pytest.fixture(scope="module")
def noisy() -> tuple[Features, Features]:
    """Correlated random features of 4 overlapping classes, with variances from 1 down to 1e-3."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (1500,), generator=generator)
    centers = 0.2 * torch.randn(4, 40, generator=generator)
    mixing = torch.randn(40, 40, generator=generator) * torch.logspace(0, -1.5, 40)
    x = (centers[labels] + torch.randn(1500, 40, generator=generator)) @ mixing.T + 3
    return Features(x[:500], labels[:500]), Features(x[500:], labels[500:])


def reference(train: Features, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(train.x.double().numpy())
    x = scaler.transform(train.x.double().numpy())
    return scaler, LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x, train.labels.numpy())


@pytest.mark.parametrize(("source", "strengths"), [("digits", (1e-3, 1e-1)), ("noisy", (1e-3, 1e-1, 1.0))])
def test_agrees_with_scikit_learn(source, strengths, request):
    """To the last digit, which scikit-learn takes long to reach on digits with little regularization."""
    train, test = request.getfixturevalue(source)
    for probe, strength in zip(logistic_path(train, strengths), strengths, strict=True):
        scaler, expected = reference(train, strength)
        x = scaler.transform(test.x.double().numpy())
        assert abs(probe.accuracy(test) - expected.score(x, test.labels.numpy())) < 1e-3
        weight = torch.from_numpy(expected.coef_).T
        assert float((probe.weight - weight).norm() / weight.norm()) < 2e-3
        bias = torch.from_numpy(expected.intercept_)
        torch.testing.assert_close(probe.bias - probe.bias.mean(), bias - bias.mean(), rtol=0, atol=2e-3)


def test_agrees_with_scikit_learn_where_images_are_fewer_than_features(digits):
    train = digits[0].take(torch.arange(40))
    [probe] = logistic_path(train, [1.0])
    _, expected = reference(train, 1.0)
    assert (probe.weight - torch.from_numpy(expected.coef_).T).norm() / probe.weight.norm() < 2e-3


def test_a_warm_start_does_not_move_the_minimum(digits):
    train, _ = digits
    *_, warm = logistic_path(train, (1e-3, 1e-2, 1e-1))
    [cold] = logistic_path(train, [1e-1])
    assert (warm.weight - cold.weight).norm() / cold.weight.norm() < 1e-3


def test_sweep_chooses_on_held_out_images_and_refits_on_all(digits):
    train, test = digits
    result = linear_probe(train, test, strengths=(1e-5, 1e-1, 1.0))
    assert result.strength in (1e-1, 1.0)
    assert result.validation[1e-5] < 0.5 < 0.9 < result.validation[result.strength]
    [refitted] = logistic_path(train, [result.strength])
    assert result.accuracy == refitted.accuracy(test)
    assert result.accuracy > 0.96  # 0.9715 when written; scikit-learn at the same strength says the same


def test_test_labels_never_choose(digits):
    train, test = digits
    wrong = Features(test.x, (test.labels + 1) % 10)
    right, misled = (linear_probe(train, each, strengths=(1e-3, 1e-1, 1.0)) for each in (test, wrong))
    assert right.validation == misled.validation
    assert right.strength == misled.strength


def test_held_out_images_are_not_fitted_on():
    """On labels without a cause, more features than images are fitted perfectly, and held-out ones at chance."""
    generator = torch.Generator().manual_seed(0)
    random = Features(torch.randn(200, 300, generator=generator), torch.arange(200) % 2)
    result = linear_probe(random, random, strengths=(1.0, 10.0))
    assert result.accuracy == 1.0
    assert max(result.validation.values()) < 0.75


def test_seed_decides_the_held_out_images(digits):
    train, test = digits
    strengths = (1e-3, 1e-2)
    first = linear_probe(train, test, strengths=strengths)
    assert linear_probe(train, test, strengths=strengths).validation == first.validation
    assert linear_probe(train, test, strengths=strengths, seed=1).validation != first.validation


def test_labels_need_not_be_consecutive(digits):
    train, test = digits
    far = [Features(each.x, each.labels * 7 + 3) for each in digits]
    assert linear_probe(*far, strengths=(0.1,)).accuracy == linear_probe(train, test, strengths=(0.1,)).accuracy


def test_constant_features_are_harmless(digits):
    train, test = digits
    padded = [Features(torch.cat([each.x, torch.full((len(each), 3), 0.1)], dim=1), each.labels) for each in digits]
    assert linear_probe(*padded, strengths=(0.1,)).accuracy == linear_probe(train, test, strengths=(0.1,)).accuracy


def test_what_cannot_be_chosen_is_refused():
    lonely = Features(torch.eye(3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="each class has a single image; holding some out"):
        linear_probe(lonely.take(torch.tensor([0, 2])), lonely)
    assert len(linear_probe(lonely, lonely, strengths=(1.0, 100.0)).validation) == 2, "class 1 has one image, to fit on"
    assert linear_probe(lonely, lonely, strengths=(100.0,)).accuracy == 1.0
    with pytest.raises(ValueError, match="must be positive"):
        linear_probe(lonely, lonely, strengths=(0.0, 1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees(digits):
    here, there = linear_probe(*digits), linear_probe(*(each.to("cuda") for each in digits))
    assert there.strength == here.strength
    assert abs(there.accuracy - here.accuracy) <= 2e-3
