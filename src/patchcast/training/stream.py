"""The batches of a whole run, starting at any step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from patchcast.data import EpochSampler, StreamSet, TrainSet, loader
from patchcast.data.streamed import WindowSampler


class Stream:
    """The batches of a whole run as one iterable that counts the batches it has given.

    Its position is a number of optimizer steps and, for a source that is read in order (`StreamSet`), the position in
    the source. Each rank gets its share of every batch, in `accumulate` pieces.

    Args:
        batch_size: images per optimizer step, over all devices.
        accumulate: pieces into which a rank's share is split.

    Attributes:
        waited: seconds spent waiting for batches in this process.
    """

    def __init__(
        self,
        train_set: TrainSet | StreamSet,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        workers: int,
        accumulate: int = 1,
    ) -> None:
        self.train_set, self.workers = train_set, workers
        self.batch_size, self.steps, self.seed, self.accumulate = batch_size, steps, seed, accumulate
        self.start, self.given, self.waited = 0, 0, 0.0
        self.place: dict[str, Any] | None = None
        self.sampler: EpochSampler | WindowSampler | None = None

    @property
    def step(self) -> int:
        """Optimizer steps for which all pieces have been given."""
        return self.start + self.given // self.accumulate

    def __iter__(self) -> Iterator[Any]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.sampler = self.train_set.sampler(
            self.batch_size,
            seed=self.seed,
            steps=self.steps,
            start_step=self.step,
            place=self.place,
            rank=rank,
            world=world,
            accumulate=self.accumulate,
        )
        batches = iter(loader(self.train_set, self.sampler, self.workers))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - asked
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "place": self.place if self.sampler is None else self.sampler.place(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.given, self.place = state["step"], 0, state.get("place")
