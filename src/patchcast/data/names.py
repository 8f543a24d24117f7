"""Millions of file names in one piece of memory, and the folder where what was found once is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


class Names:
    """File names as one array of bytes: ten million lie in a few hundred megabytes, which forked workers share.

    A list of strings would be copied bit by bit into every worker, whose reference counts write to each string's page.

    >>> names = Names(["a/1.png", "b/2.png"])
    >>> len(names), names[1], list(names)
    (2, 'b/2.png', ['a/1.png', 'b/2.png'])
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


def cache_folder() -> Path:
    """Where what was made once is kept: `$XDG_CACHE_HOME/patchcast`, or `~/.cache/patchcast`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchcast"


def cache_file(what: Any, suffix: str) -> Path:
    """The file in the cache folder that belongs to `what` (anything that JSON can hold), whether it is there or not."""
    return cache_folder() / (hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32] + suffix)


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file under another name and then rename it: a broken process leaves nothing half-written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.stem}.{os.getpid()}{file.suffix}")
    try:
        write(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
