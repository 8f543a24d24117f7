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
    """Lock a run folder for this process; the operating system releases the lock when the process ends or is killed.

    Without `fcntl` (Windows), and on file systems without locks (some NFS), nothing is locked.

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
        # lockf and not flock: worker processes inherit flock's locks and may outlive a killed parent.
        try:
            file = (out / LOCK).open("a+")
        except PermissionError as problem:
            raise ValueError(
                f"the folder {out} cannot be written, where the run keeps its files; make it writable, or choose "
                "another --out"
            ) from problem
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as problem:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{holder} is training the run in {out}; wait for it, end it, or choose another --out"
            ) from problem
        except OSError:
            pass  # this file system has no locks
        if (out / LOCK).exists() and os.fstat(file.fileno()).st_ino == (out / LOCK).stat().st_ino:
            break
        file.close()  # the holder has just ended and removed the file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        file.close()
