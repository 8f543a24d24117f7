from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from patchcast.evaluation import Features, knn, knn_accuracy, knn_probe
from patchcast.evaluation.knn import standardized_on


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_agrees_with_scikit_learn(digits, k):
    train, test = digits
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train.x.double().numpy(), train.labels.numpy())
    expected = reference.score(test.x.double().numpy(), test.labels.numpy())
    assert knn_accuracy(train, test, k=(k,))[k] == pytest.approx(expected, abs=1e-9)


def test_weights_let_one_close_neighbor_outvote_two_far_ones():
    train = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[1.0, 0.2]]), torch.tensor([0]))
    assert knn_accuracy(train, test, k=(3,)) == {3: 1.0}


def test_chunks_do_not_change_the_answer(digits, monkeypatch):
    whole = knn_accuracy(*digits)
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 1200 * 7)
    assert knn_accuracy(*digits) == whole


def test_k_beyond_the_training_set_is_left_out():
    train = Features(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    assert list(knn_accuracy(train, train, k=(20, 4, 1))) == [1, 4]
    with pytest.raises(ValueError, match=r"no k of \(5, 9\) is between 1 and the 4 training images"):
        knn_accuracy(train, train, k=(5, 9))


def test_a_class_never_trained_on_is_never_right():
    train = Features(torch.eye(2), torch.tensor([0, 1]))
    assert knn_accuracy(train, Features(torch.eye(2), torch.tensor([0, 7])), k=(1,)) == {1: 0.5}


def test_k_is_chosen_on_held_out_training_images(digits):
    train, test = digits
    wrong = Features(test.x, (test.labels + 1) % 10)
    right, misled = (knn_probe(train, each, k=(1, 5, 1000)) for each in (test, wrong))
    assert right.k in (1, 5)
    assert misled.k == right.k
    assert misled.validation == right.validation
    assert misled.standardized == right.standardized
    shown = standardized_on(train, test) if right.standardized else (train, test)
    assert right.by_k == knn_accuracy(*shown, k=(1, 5, 1000))
    assert right.accuracy == right.by_k[right.k] == right.correct.double().mean()


def test_the_scale_is_chosen_on_held_out_training_images():
    """Noise in a few large directions hides the classes from raw features; scaling noise up hides them otherwise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    signal = (2.0 * labels - 1)[:, None] + 0.1 * torch.randn(200, 1, generator=generator)
    noise = torch.randn(200, 40, generator=generator)
    hidden = Features(torch.cat([signal, 100 * noise[:, :4]], 1), labels)
    plain = Features(torch.cat([signal, 0.01 * noise], 1), labels)
    misled = Features(hidden.x, 1 - labels)
    assert knn_probe(hidden, hidden).standardized
    assert knn_probe(hidden, misled).standardized  # test labels have no say
    assert knn_probe(hidden, hidden).accuracy > 0.95
    assert not knn_probe(plain, plain).standardized
