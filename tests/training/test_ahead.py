"""Batches are read and moved while the step before them runs, and are the same ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patchcast.data import Augment, TrainSet, open_images
from patchcast.training.ahead import ReadAhead
from patchcast.training.engine import Engine, reads_ahead
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization
from patchcast.training.stream import Stream
from tests.training.test_run import killed_at, tiny

AUGMENT = Augment((8, 8), (0.4, 1.0), True, (0.3,), (0.4,))


def stream(*, ahead: bool, augment: Any = AUGMENT, steps: int = 12) -> Stream:
    train_set = TrainSet(open_images("digits"), augment, seed=3)
    return Stream(train_set, batch_size=16, steps=steps, seed=3, workers=0, ahead=ahead)


def run(out: Path, *, ahead: bool) -> dict[str, torch.Tensor]:
    """The weights after twelve steps, whose dropout comes from torch's global random state."""
    pretrainer = tiny("mae")
    engine = Engine(precision="fp32", device="cpu", log_every=1, eval_every=6, checkpoint_every=5)
    train(
        pretrainer, stream(ahead=ahead), None, optimization=Optimization(lr=1e-3), engine=engine, out=out, title="test"
    )
    return pretrainer.state_dict()


def test_the_next_batch_is_read_while_one_is_used() -> None:
    """One is ahead and no more, in another thread, which uses one of torch's threads."""
    read, used, threads = list[int](), threading.Event(), torch.get_num_threads()

    def items() -> Iterator[int]:
        for number in range(4):
            assert threading.current_thread() is not threading.main_thread()
            assert torch.get_num_threads() == 1
            read.append(number)
            if number == 2:
                assert used.wait(60), "the second item is to be used meanwhile"
            yield number

    with ReadAhead(items()) as ahead:
        assert next(ahead) == 0
        ahead.settle()
        assert read == [0, 1]
        assert next(ahead) == 1
        used.set()
        assert list(ahead) == [2, 3]
    assert torch.get_num_threads() == threads


def test_what_fails_while_reading_fails_where_it_is_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the disk is gone")

    with ReadAhead(items()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(ValueError, match="the disk is gone"):
            next(ahead)


def test_a_run_is_the_same_to_the_bit_also_when_it_was_killed(tmp_path: Path) -> None:
    plain, ahead = run(tmp_path / "plain", ahead=False), run(tmp_path / "ahead", ahead=True)
    with killed_at(7):
        run(tmp_path / "killed", ahead=True)
    resumed = run(tmp_path / "killed", ahead=True)
    for name, value in plain.items():
        assert torch.equal(value, ahead[name]), name
        assert torch.equal(value, resumed[name]), name


def test_what_a_stream_counts_is_what_was_used() -> None:
    """What is ahead is read again when the run resumes."""
    first = stream(ahead=True)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    assert first.state_dict()["step"] == 5
    resumed = stream(ahead=True)
    resumed.load_state_dict(first.state_dict())
    rest = [images for images, _ in resumed]
    expected = [images for images, _ in stream(ahead=False)][5:]
    assert len(rest) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(rest, expected, strict=True))


class Recorded:
    """A transfer that notes what happens when, in place of a GPU's."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, batch: Any) -> Any:
        self.events.append("begin")
        return len(batch[0]), batch

    def arrived(self, batch: Any) -> Any:
        count, moved = batch
        assert count == 16
        self.events.append("arrived")
        return moved


def test_a_transfer_begins_when_a_batch_is_read_and_ends_when_it_is_used() -> None:
    transfer, reading = Recorded(), stream(ahead=True, steps=3)
    batches = reading.batches(transfer)
    next(batches)
    reading.settle()
    assert sorted(transfer.events) == ["arrived", "begin", "begin"], "the second is on its way, the third is not"
    assert len(list(batches)) == 2
    assert transfer.events.count("arrived") == 3


def test_only_a_spare_core_reads_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert reads_ahead("auto", 0)
    assert not reads_ahead("auto", 1), "workers do"
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert not reads_ahead("auto", 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert reads_ahead("auto", 4)
    assert not reads_ahead("cpu", 4)
