"""SIGTERM and Ctrl-C end a run between two steps, in all processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Records signals, so that all processes save a checkpoint and end at the same step.

    Args:
        group: a process group of all ranks on the CPU, so that the ranks agree at every step without a GPU sync; None
            for a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.asked = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals and do nothing else; a second Ctrl-C stops at once.

        Outside the main thread Python allows no signal handlers, and nothing is recorded.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that any process has received so far, or 0; every rank must call this."""
        if self.group is not None:
            asked = torch.tensor(self.asked)
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
            self.asked = int(asked)
        return self.asked

    def raise_at(self, step: int) -> None:
        """End the run after this step's checkpoint.

        Raises:
            InterruptedError: for SIGTERM.
            KeyboardInterrupt: for Ctrl-C.
        """
        place = f"at step {step:,}, and saved; the same command resumes there"
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped (Ctrl-C) {place}")
        raise InterruptedError(f"asked to end (SIGTERM) {place}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
