"""Work in processes that are forked from the tests' own: these import nothing again, which takes seconds each."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

PATIENCE = 600.0
"""Seconds to wait for a process, or for what it does."""


@dataclass
class Forked:
    """A process that was started by `fork`, and the file that holds what it prints."""

    pid: int
    printed: Path
    code: int | None = None

    def is_running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, str]:
        """Its exit status (minus the signal that ended it), and what it printed."""
        until = time.monotonic() + PATIENCE
        while self.is_running():
            if time.monotonic() > until:
                self.kill()
            time.sleep(0.01)
        assert self.code is not None
        return self.code, self.printed.read_text()

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that the process does."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert self.is_running(), self.printed.read_text()
            assert time.monotonic() < until, self.printed.read_text()
            time.sleep(0.01)


def fork(work: Callable[[], int | None], printed: Path, **environment: str) -> Forked:
    """Do the work in a process of its own, which exits with what the work returns (1 if it raises)."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if pid := os.fork():
        return Forked(pid, printed)
    code: int | None = 1
    try:
        os.environ.update(environment)
        with printed.open("w", buffering=1) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.stdout = sys.stderr = out
            try:
                code = work()
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code or 0)  # without what pytest does at its end


def fork_ranks(work: Callable[[int], int | None], world: int, folder: Path) -> list[str]:
    """Do the work on several ranks, as torchrun would start them, and return what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}

    def as_rank(rank: int) -> int | None:
        rank_zero_only.rank = rank  # type: ignore[attr-defined]  # Lightning reads it when it is imported
        return work(rank)

    ranks = [
        fork(partial(as_rank, rank), folder / f"rank-{rank}.txt", **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(world)
    ]
    until = time.monotonic() + PATIENCE
    while any(process.is_running() for process in ranks) and time.monotonic() < until:
        if any(not process.is_running() and process.wait()[0] for process in ranks):
            break  # the others would wait for it
        time.sleep(0.01)
    for process in ranks:
        process.kill()
    ended = [process.wait() for process in ranks]
    assert [code for code, _ in ended] == [0] * world, "\n".join(text[-3000:] for _, text in ended)
    return [text for _, text in ended]
