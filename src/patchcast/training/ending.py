"""Asks a run to end between two steps: SIGTERM and Ctrl-C, whichever process gets them."""

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
    """Notes the signals, so that the loop can end after a checkpoint, in all processes at the same step.

    Args:
        group: of all ranks, on the CPU, so that agreeing on it at every step does not wait for a GPU; None for one.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.asked = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are noted, and do nothing else; a second Ctrl-C stops at once.

        Outside of the main thread Python allows no handlers, and nothing is noted.
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
        """The signal that any process has got so far, or 0; every rank must ask."""
        if self.group is not None:
            asked = torch.tensor(self.asked)
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
            self.asked = int(asked)
        return self.asked

    def raise_at(self, step: int) -> None:
        """End the run, after a checkpoint of this step.

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
