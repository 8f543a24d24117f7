from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from patchcast.data.splits import draw_per_class, stratified_split
from patchcast.evaluation import Features, feature_protocol, few_labels, paired_differences, ridge_accuracy
from patchcast.evaluation.feature_protocol import FeatureProtocol
from patchcast.evaluation.ridge import PENALTIES


def test_draws_are_stratified_and_without_repetition():
    labels = torch.randint(0, 5, (300,))
    index = draw_per_class(labels, 7, generator=torch.Generator().manual_seed(0))
    assert labels[index].bincount().tolist() == [7] * 5
    assert len(index.unique()) == 35
    fit, held = stratified_split(labels, 0.2, generator=torch.Generator().manual_seed(0))
    assert torch.cat([fit, held]).sort().values.equal(torch.arange(300))
    expected = (0.2 * labels.bincount()).round().long()
    assert labels[held].bincount().equal(expected)


def test_too_few_images_of_a_class_name_it():
    features = Features(torch.randn(7, 3), torch.tensor([0, 0, 0, 0, 4, 4, 4]))
    with pytest.raises(ValueError, match="class 4 has 3 images, but 4 labels per class were asked for"):
        few_labels(features, features, per_class=(4,))


@pytest.mark.parametrize("images", [30, 800])
def test_ridge_agrees_with_scikit_learn(digits, images):
    """Both where images are fewer than the 64 features and where they are more."""
    train, test = digits[0].take(torch.arange(images)), digits[1]
    scaler = StandardScaler().fit(train.x.double().numpy())
    expected = RidgeClassifierCV(alphas=64 * np.array(PENALTIES)).fit(
        scaler.transform(train.x.double().numpy()), train.labels.numpy()
    )
    score = expected.score(scaler.transform(test.x.double().numpy()), test.labels.numpy())
    assert ridge_accuracy(train, test) == pytest.approx(score, abs=1e-9)


def test_more_labels_help_and_the_spread_is_told(digits):
    one, ten = few_labels(*digits, per_class=(1, 10), draws=8)
    assert 0.35 < one.mean < 0.7 < ten.mean < 0.95
    assert one.std > ten.std > 0
    assert one.interval.low < one.mean < one.interval.high
    half = float(one.accuracies.std()) / 8**0.5 * 2.364624  # Student's t at 97.5 %, 7 degrees of freedom
    assert one.interval.high - one.mean == pytest.approx(half, abs=1e-6)


def test_draws_are_the_same_for_every_feature_set_and_request(digits):
    train, test = digits
    drawn: list[torch.Tensor] = []

    def spy(chosen: Features, _: Features) -> float:
        drawn.append(chosen.x[:, 0])
        return 0.0

    numbered = Features(torch.arange(len(train))[:, None].float().expand(-1, 64), train.labels)
    few_labels(numbered, test, per_class=(1, 5), draws=3, probe=spy)
    few_labels(numbered, test, per_class=(5,), draws=2, probe=spy)
    few_labels(numbered, test, per_class=(5,), draws=2, seed=1, probe=spy)
    assert drawn[3].equal(drawn[6]), "neither other numbers per class nor more draws move a draw"
    assert drawn[4].equal(drawn[7])
    assert not drawn[3].equal(drawn[4])
    assert not drawn[3].equal(drawn[8]), "another seed does"


def test_pairs_tell_apart_what_intervals_alone_do_not(digits):
    """A slightly worse copy: the draws' spread hides the loss, draw by draw it shows."""
    train, test = digits
    noise = torch.Generator().manual_seed(0)
    worse = [Features(each.x + 0.8 * torch.randn(each.x.shape, generator=noise), each.labels) for each in digits]
    ours, theirs = few_labels(train, test, per_class=(2,), draws=20), few_labels(*worse, per_class=(2,), draws=20)
    [found] = paired_differences(ours, theirs)
    assert found.difference.value == pytest.approx(ours[0].mean - theirs[0].mean, abs=1e-9)
    assert found.difference.low > 0
    assert ours[0].interval.low < theirs[0].interval.high, "the unpaired intervals overlap"
    assert found.wins > 0.5
    [same] = paired_differences(ours, ours)
    assert same.difference == (0, 0, 0)


def test_pairs_of_different_draws_are_refused(digits):
    ours = few_labels(*digits, per_class=(2,), draws=2)
    with pytest.raises(ValueError, match="needs the same images in the same order"):
        paired_differences(ours, few_labels(*digits, per_class=(2,), draws=2, seed=1))
    with pytest.raises(ValueError, match="at least 2 draws"):
        few_labels(*digits, draws=1)


def test_small_features_are_probed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a network runs on a GPU too; few labels are, whatever the size of the features."""
    moved: list[str] = []
    few = feature_protocol.few_labels

    def to(features: Features, device: str) -> Features:
        moved.append(device)
        return features

    def few_first(*given: Any, **how: Any) -> Any:
        assert not moved
        return few(*given, **how)

    monkeypatch.setattr(Features, "to", to)
    monkeypatch.setattr(feature_protocol, "few_labels", few_first)
    features = Features(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2)
    protocol: Any = SimpleNamespace(
        per_class=(1,), options=SimpleNamespace(draws=2), request=SimpleNamespace(device="cuda")
    )
    for least, wanted in ((161, []), (160, ["cuda", "cuda"])):
        monkeypatch.setattr(feature_protocol, "FITTED_ON_GPU", least)
        FeatureProtocol._score(protocol, features, features)
        assert moved == wanted
