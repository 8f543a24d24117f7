"""Batches that are read and moved to the device ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

END = object()
"""What is read after the last batch."""


Move = Callable[[Any, torch.device], Any]
"""From a batch as the loader gives it to one on a device."""


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on a device; copies of pinned memory make nobody wait."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)


@runtime_checkable
class Transfer(Protocol):
    """How a batch comes to a device: begun when it has been read, and awaited when a step needs it."""

    def begin(self, batch: Any) -> Any: ...

    def arrived(self, batch: Any) -> Any: ...


@dataclass(frozen=True)
class InPlace:
    """Moves a batch to a device that does nothing at the same time, such as the CPU.

    >>> InPlace(torch.device("cpu")).begin([torch.zeros(2)])
    [tensor([0., 0.])]

    Args:
        move: of a batch to a device; `moved`, or what also decodes (`patchcast.data.jpeg_batches`).
    """

    device: torch.device
    move: Move = moved

    def begin(self, batch: Any) -> Any:
        return self.move(batch, self.device)

    def arrived(self, batch: Any) -> Any:
        return batch


class SideStream:
    """Copies a batch to a GPU on a stream of its own, while the kernels of the step before it run.

    Copies of pinned memory, which the loader makes, do not make the CPU wait. `arrived` makes the stream of the step
    wait for the copies, and tells the allocator that the step uses their memory.

    Args:
        device: a CUDA device.
        move: as of `InPlace`.
    """

    def __init__(self, device: torch.device, move: Move = moved) -> None:
        self.device, self.stream, self.move = device, torch.cuda.Stream(device), move

    def begin(self, batch: Any) -> Any:
        with torch.cuda.stream(self.stream):
            batch = self.move(batch, self.device)
            return batch, self.stream.record_event()

    def arrived(self, batch: Any) -> Any:
        batch, copied = batch
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in tree_iter(batch):
            if isinstance(tensor, Tensor):
                tensor.record_stream(stream)
        return batch


class ReadAhead:
    """An iterator whose next item is made by a thread while the present one is used: never more than one ahead.

    The items and their order are the same. The thread must not draw from torch's global random state, or the draws of
    the caller would depend on timing.

    >>> with ReadAhead(iter([1, 2, 3])) as items:
    ...     print(next(items), next(items))
    ...     items.settle()
    1 2

    Args:
        items: only the thread calls its `__next__` from here on.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self.read: Callable[[], Any] = partial(next, items, END)
        # Like torch's thread for pinned memory: one thread leaves the others to the step.
        self.pool = ThreadPoolExecutor(1, "reads ahead", partial(torch.set_num_threads, 1))
        self.pending: Future[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = (self.pending or self.pool.submit(self.read)).result()
        if item is END:
            raise StopIteration
        self.pending = self.pool.submit(self.read)
        return item

    def settle(self) -> None:
        """Wait until nothing is being read: before other code reads images, or asks where reading is."""
        if self.pending is not None:
            wait([self.pending])

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
