"""Report what a run waits for if its workers return no batch for long: a stopped process, an unavailable disk."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader

PATIENCE = 60.0
"""Seconds without a batch until the first message; the time to the next message doubles."""
STATES = {"T": "stopped", "t": "stopped", "D": "waits for a disk", "Z": "dead"}
Batch = TypeVar("Batch")


class PatientLoader(DataLoader[Any]):
    """A `DataLoader` that reports on stderr, after a minute without a batch, which worker processes it waits for."""

    def __iter__(self) -> Any:
        return watch(super().__iter__(), has_workers=self.num_workers > 0)


def watch(batches: Iterator[Batch], patience: float | None = None, *, has_workers: bool = True) -> Iterator[Batch]:
    """The same batches; if one takes long, a thread of this process reports what is waited for.

    >>> list(watch(iter([1, 2])))
    [1, 2]

    Args:
        patience: in seconds; `PATIENCE` if None.
        has_workers: whether other processes read the images.
    """
    patience = PATIENCE if patience is None else patience
    state = threading.Condition()
    count, is_waiting, is_done = 0, False, False

    def look() -> None:
        waited, next_message = 0, patience
        while True:
            with state:
                before = count
                state.wait_for(lambda: is_done, timeout=patience)
                if is_done:
                    return
                waited = waited + 1 if is_waiting and count == before else 0
            if not waited:
                next_message = patience
            elif waited * patience >= next_message:
                print(
                    _message(waited * patience) if has_workers else _alone(waited * patience),
                    file=sys.stderr,
                    flush=True,
                )
                next_message *= 2

    watcher = threading.Thread(target=look, name="waiting for batches", daemon=True)
    watcher.start()
    try:
        while True:
            is_waiting = True
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                is_waiting, count = False, count + 1
            yield batch
    finally:
        with state:
            is_done = True
            state.notify_all()


def _message(seconds: float) -> str:
    workers = [process for process in multiprocessing.active_children() if process.pid is not None]
    each = ", ".join(f"{process.pid}{_state(process.pid)}" for process in workers) or "none alive"
    return (
        f"no batch for {seconds:.0f} s: waiting for the workers that read images (processes {each}); a disk that does "
        "not answer, or a stopped process, holds them up. Ctrl-C ends the run."
    )


def _alone(seconds: float) -> str:
    return (
        f"no batch for {seconds:.0f} s: this process is reading images; a disk that does not answer would hold it up. "
        "Ctrl-C ends the run."
    )


def _state(pid: int | None) -> str:
    """Linux's description of a process that is not running; empty on other systems."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return f" {STATES[letter]}" if letter in STATES else ""
