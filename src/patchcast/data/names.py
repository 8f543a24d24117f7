"""Millions of file names in one block of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from patchcast.plain import visible


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


def printable(name: str) -> str:
    """A file's name as text that any terminal, file and table takes: bytes that are no UTF-8, and control characters,
    are written as `\\xff`.

    >>> printable(os.fsdecode(b"caf\\xe9.png"))
    'caf\\\\xe9.png'
    """
    return visible(os.fsencode(name).decode(errors="backslashreplace"))


def escape(text: object) -> str:
    """Text for rich, without markup of its own.

    >>> escape("run [bold]")
    'run \\\\[bold]'
    """
    from rich import markup

    return markup.escape(printable(str(text)))
