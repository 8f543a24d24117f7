from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from patchcast.evaluation import Features, knn, knn_accuracy, knn_probe


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
    assert right.by_k == knn_accuracy(train, test, k=(1, 5, 1000))
    assert right.accuracy == right.by_k[right.k] == right.correct.double().mean()
