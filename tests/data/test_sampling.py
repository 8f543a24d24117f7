"""Batches are a function of (seed, step): whatever the workers, the ranks, and where the run was stopped."""

from __future__ import annotations

import itertools

import pytest
import torch

from patchcast.data import Augment, EpochSampler, EvalSet, Evaluate, TrainSet, loader, open_images
from patchcast.data.seeds import mix_seed
from tests.data.test_images import truncated
from tests.data.test_sources import draw
from tests.few import few_digits


@pytest.fixture(scope="module")
def train_set():
    with few_digits():
        images = open_images("digits")
    return TrainSet(images, Augment((12, 12), (0.4, 1.0), True, (0.3,), (0.4,)), seed=5)


def test_an_epoch_shows_every_image_once_and_batches_stay_within_it():
    batches = list(EpochSampler(12, 4, seed=0, steps=9))
    for epoch in range(3):
        keys = list(itertools.chain(*batches[3 * epoch : 3 * epoch + 3]))
        assert {found for found, _ in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(12))
    orders = [tuple(index for batch in batches[start : start + 3] for _, index in batch) for start in (0, 3, 6)]
    assert len(set(orders)) == 3


def test_what_is_left_of_an_epoch_is_dropped_and_differs_between_epochs():
    sampler = EpochSampler(10, 4, seed=0, steps=20)
    assert sampler.steps_per_epoch == 2
    batches = list(sampler)
    dropped = set()
    for epoch in range(10):
        keys = batches[2 * epoch] + batches[2 * epoch + 1]
        assert {found for found, _ in keys} == {epoch}
        assert len(set(keys)) == 8
        dropped.add(frozenset(range(10)) - {index for _, index in keys})
    assert len(dropped) > 3


@pytest.mark.parametrize("length", [1, 3, 7])
def test_fewer_images_than_a_batch_takes(length):
    sampler = EpochSampler(length, 8, seed=0, steps=2 * length)
    keys = list(itertools.chain(*sampler))
    assert all(len(batch) == 8 for batch in sampler)
    assert len(set(keys)) == len(keys)  # no image twice with the same augmentation
    assert sorted(keys) == [(epoch, index) for epoch in range(16) for index in range(length)]
    assert sampler.steps_per_epoch == length / 8


def test_seeds_and_epochs_do_not_mirror_each_other():
    def epoch(seed: int, number: int) -> list[int]:
        return [index for _, index in EpochSampler(50, 50, seed=seed, steps=9).batch(number)]

    orders = [epoch(seed, number) for seed in range(4) for number in range(4)]
    assert len({tuple(order) for order in orders}) == 16
    assert epoch(2, 3) == epoch(2, 3)


def test_places_are_drawn_evenly():
    first = [EpochSampler(5, 5, seed=seed, steps=1).batch(0)[0][1] for seed in range(2000)]
    counts = torch.bincount(torch.tensor(first), minlength=5)
    assert (counts - 400).abs().max() < 5 * (2000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("length", [5, 10, 23])
@pytest.mark.parametrize("start_step", [0, 1, 4, 11, 12])
def test_a_later_start_gives_the_rest(length, start_step):
    whole = list(EpochSampler(length, 6, seed=3, steps=12))
    rest = EpochSampler(length, 6, seed=3, steps=12, start_step=start_step)
    assert len(rest) == 12 - start_step
    assert list(rest) == whole[start_step:]
    assert list(rest) == whole[start_step:]  # and again: nothing is used up


@pytest.mark.parametrize("length", [5, 10, 23])
@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_share_the_batch_in_order(length, world):
    whole = list(EpochSampler(length, 6, seed=3, steps=12))
    ranks = [list(EpochSampler(length, 6, seed=3, steps=12, rank=rank, world=world)) for rank in range(world)]
    assert [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=True)] == whole
    assert {len(share) for rank in ranks for share in rank} == {6 // world}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "at least one image"),
        ({"batch_size": 0}, "at least one image"),
        ({"world": 4}, "batch of 6 cannot be shared evenly by 4 ranks"),
        ({"world": 2, "rank": 2}, "got rank 2 of 2"),
        ({"start_step": 13}, "got 13 and 12"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**({"length": 10, "batch_size": 6, "seed": 0, "steps": 12} | changes))


def test_mix_seed_is_the_same_everywhere():
    # A change of these numbers would change every run: they are what hashlib gives for b"0 0 0" and b"1 2 3".
    assert mix_seed(0, 0, 0) == 11684132067157788011
    assert mix_seed(1, 2, 3) == 3081874676955396121
    assert len({mix_seed(*numbers) for numbers in itertools.product(range(-3, 12), repeat=3)}) == 15**3


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_goes_on_sees_the_same_pixels(train_set, workers):
    def batches(start_step: int) -> list:
        sampler = EpochSampler(len(train_set), 20, seed=5, steps=18, start_step=start_step)
        return list(loader(train_set, sampler, workers))

    whole = list(loader(train_set, EpochSampler(len(train_set), 20, seed=5, steps=18), 0))
    assert len(whole) == 18  # over an epoch's end, which comes after 14
    assert same(batches(0), whole)
    assert same(batches(13), whole[13:])
    images, labels = whole[0]
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (20, 1, 12, 12),
        torch.float32,
        (20,),
        torch.int64,
    )


@pytest.mark.filterwarnings("ignore:skipped")
def test_workers_stand_in_for_unreadable_images_as_one_process_does(tmp_path):
    for value in range(12):
        draw(tmp_path / f"{value:02}.png", 20 * value, size=(32, 32))
    for value in (3, 4, 11):
        (tmp_path / f"{value:02}.jpg").write_bytes(truncated(value))
        (tmp_path / f"{value:02}.png").unlink()

    def batches(workers: int) -> list:
        images = open_images(str(tmp_path))
        assert len(images) == 12  # truncation shows only when pixels are decoded
        train_set = TrainSet(images, Augment((8, 8), (0.4, 1.0), False, (0.0,) * 3, (1.0,) * 3), seed=0)
        return list(loader(train_set, EpochSampler(12, 6, seed=0, steps=3), workers))

    alone = batches(0)
    assert same(batches(2), alone)
    seen = {round(float(image.mean()) * 255 / 20) for images, _ in alone for image in images}
    assert seen == set(range(12)) - {3, 4, 11}


def test_ranks_see_the_pixels_of_one_process(train_set):
    whole = list(loader(train_set, EpochSampler(len(train_set), 60, seed=1, steps=3), 0))
    ranks = [
        list(loader(train_set, EpochSampler(len(train_set), 60, seed=1, steps=3, rank=rank, world=3), 0))
        for rank in range(3)
    ]
    joined = [tuple(torch.cat(parts) for parts in zip(*shares, strict=True)) for shares in zip(*ranks, strict=True)]
    assert same(joined, whole)


def test_epochs_augment_in_different_ways(train_set):
    versions = {train_set[epoch, 7][0].numpy().tobytes() for epoch in range(10)}
    assert len(versions) > 5  # of 8x8 pixels there are few crops
    other = TrainSet(train_set.images, train_set.augment, seed=6)
    assert not torch.equal(other[0, 7][0], train_set[0, 7][0])


def test_reading_batches_leaves_the_global_random_state_alone(train_set):
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(loader(train_set, EpochSampler(len(train_set), 50, seed=0, steps=2), workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_preloading_for_many_epochs_changes_no_pixel():
    augment = Augment((12, 12), (0.4, 1.0), True, (0.3,), (0.4,))
    once, often = (TrainSet(open_images("digits"), augment, seed=5) for _ in range(2))
    short = list(loader(once, EpochSampler(1437, 100, seed=5, steps=2), 0))
    long = loader(often, EpochSampler(1437, 100, seed=5, steps=100), 0)
    assert often.images.is_preloaded
    assert not once.images.is_preloaded
    assert same(list(itertools.islice(long, 2)), short)


def test_eval_set_gives_every_image_in_order():
    images = open_images("digits", split="test")
    evaluation = EvalSet(images, Evaluate((8, 8), (0.0,), (1.0,)))
    assert len(evaluation) == 360
    for index in (0, 17, 359):
        image, label = evaluation[index]
        assert torch.allclose(image * 255, images[index].image.float(), atol=1e-4)
        assert label == images.labels[index]
