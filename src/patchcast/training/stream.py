"""The batches of a whole run, starting at any step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from patchcast.data import EpochSampler, StreamSet, loader
from patchcast.data.sampling import Sampled
from patchcast.data.streamed import WindowSampler
from patchcast.training.ahead import InPlace, Move, ReadAhead, Transfer, moved


class Stream:
    """The batches of a whole run as one iterable that counts the batches it has given.

    Its position is a number of optimizer steps and, for a source that is read in order (`StreamSet`), the position in
    the source. Each rank gets its share of every batch, in `accumulate` pieces.

    Args:
        batch_size: images per optimizer step, over all devices.
        accumulate: pieces into which a rank's share is split.
        later: further sets, each from a step on, in order: the same images, augmented to another size.
        ahead: whether a thread reads a batch while the one before it is used, and moves it to the device; never of a
            source that is read in order.
        move: how the images of a batch come to a device.

    Attributes:
        waited: seconds spent waiting for batches in this process.
    """

    def __init__(
        self,
        train_set: Sampled,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        workers: int,
        accumulate: int = 1,
        later: Sequence[tuple[int, Sampled]] = (),
        ahead: bool = False,
        move: Move = moved,
    ) -> None:
        self.phases, self.workers, self.move = [(0, train_set), *later], workers, move
        # The datasets library's streams cannot be copied in another thread: fsspec caches a file system per thread.
        self.is_ahead = ahead and not isinstance(train_set, StreamSet)
        self.batch_size, self.steps, self.seed, self.accumulate = batch_size, steps, seed, accumulate
        self.start, self.given, self.waited = 0, 0, 0.0
        self.place: dict[str, Any] | None = None
        self.samplers: list[tuple[int, EpochSampler | WindowSampler]] = []
        self._reading: ReadAhead | None = None

    @property
    def step(self) -> int:
        """Optimizer steps for which all pieces have been given."""
        return self.start + self.given // self.accumulate

    def __iter__(self) -> Iterator[Any]:
        """Batches (images, labels)."""
        return self.batches(InPlace(torch.device("cpu"), self.move))

    def batches(self, transfer: Transfer) -> Iterator[Any]:
        """The batches on a device."""
        read = map(transfer.begin, self._read())
        reading: AbstractContextManager[Iterator[Any]] = ReadAhead(read) if self.is_ahead else nullcontext(read)
        self._reading = reading if isinstance(reading, ReadAhead) else None
        with reading as moved:
            while True:
                asked = time.perf_counter()
                batch = next(moved, None)
                if batch is None:
                    return
                batch = transfer.arrived(batch)
                self.waited += time.perf_counter() - asked
                self.given += 1
                yield batch

    def settle(self) -> None:
        """Wait until no thread reads ahead."""
        if self._reading is not None:
            self._reading.settle()

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"step": self.step, "place": self._place(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.given, self.place, self.samplers = state["step"], 0, state.get("place"), []

    def _read(self) -> Iterator[Any]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        begin, self.samplers = self.step, []
        ends = [first for first, _ in self.phases[1:]] + [self.steps]
        for (first, train_set), end in zip(self.phases, ends, strict=True):
            start = max(first, begin)
            if start >= end:
                continue
            sampler = train_set.sampler(
                self.batch_size,
                seed=self.seed,
                steps=end,
                start_step=start,
                place=self._place(start),
                rank=rank,
                world=world,
                accumulate=self.accumulate,
            )
            self.samplers.append((start, sampler))
            yield from loader(cast("Dataset[Any]", train_set), sampler, self.workers)

    def _place(self, step: int) -> dict[str, Any] | None:
        """Where a source that is read in order is at a step."""
        sampler = next((sampler for first, sampler in reversed(self.samplers) if first <= step), None)
        return self.place if sampler is None else sampler.place(step)
