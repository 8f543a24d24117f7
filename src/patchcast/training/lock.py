"""One run in a folder at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the operating system lets go of it when the process ends, however it does.

    Nothing is locked where Python has no `fcntl` (Windows), or where the file system has no locks (some of NFS).

    Raises:
        ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    while True:
        # lockf, not flock: worker processes inherit flock's locks, and may outlive a killed holder.
        file = (out / LOCK).open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as problem:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{holder} is at work on the run in {out}; wait for it, end it, or choose another --out"
            ) from problem
        except OSError:
            pass  # this file system has no locks
        if (out / LOCK).exists() and os.fstat(file.fileno()).st_ino == (out / LOCK).stat().st_ino:
            break
        file.close()  # its holder has just ended, and removed it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        file.close()
