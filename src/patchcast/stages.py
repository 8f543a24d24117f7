"""What a command is doing, for whoever waits: nothing is silent for long.

A stage that is done within a second is not shown. A longer one is one line on stderr; in a terminal, the line counts
its seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AFTER = 1.0
"""Seconds after which a stage is shown."""
_shown = False


def show_stages() -> None:
    """Show stages from here on, as the command line does; as a library, patchcast prints nothing."""
    global _shown
    _shown = True


@contextmanager
def stage(doing: str, *, after: float = AFTER) -> Iterator[None]:
    """Say what the code inside does, if it takes longer than `after` seconds.

    >>> with stage("Listing the images of photos"):
    ...     pass

    Args:
        doing: what is done, as the beginning of a sentence without its end.
    """
    if not _shown:
        yield
        return
    is_done = threading.Event()
    teller = threading.Thread(target=_tell, args=(doing, is_done, after), name="stage", daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_done.set()
        teller.join()


def _tell(doing: str, is_done: threading.Event, after: float) -> None:
    begun = time.perf_counter()
    if is_done.wait(after):
        return
    if not sys.stderr.isatty():
        print(f"{doing} ...", file=sys.stderr, flush=True)
        return
    while True:
        print(f"\r{doing} ... {time.perf_counter() - begun:.0f} s", end="", file=sys.stderr, flush=True)
        if is_done.wait(1.0):
            print(file=sys.stderr, flush=True)
            return
