"""Images that are in two splits: a test image that is also a training image measures memorization."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from patchcast.data.decode import ImageFile
from patchcast.data.images import Images

ENDS = 4096
"""Bytes at each end of a file that are compared first; only files that agree there are read whole."""


class Shared(NamedTuple):
    """An image file of one split that is in another split too, byte for byte: its names there and here."""

    path: str
    other: str


def shared_files(images: Images, others: Images) -> list[Shared]:
    """The images whose encoded file is in `others` too.

    Length and both ends of every file are compared first, so that few files are read whole.

    >>> from patchcast.data import open_images
    >>> train, test = open_images("digits"), open_images("digits", split="test")
    >>> len(shared_files(test, train)), len(shared_files(test, test))
    (0, 360)
    """
    places: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for position in others.positions.tolist():
        key = _ends(others, position)
        if key is not None:
            places[key].append(position)
    shared = []
    for position in images.positions.tolist():
        key = _ends(images, position)
        for other in places.get(key, ()) if key is not None else ():
            if _digest(images, position) == _digest(others, other):
                shared.append(Shared(images.store.path(position), others.store.path(other)))
                break
    return shared


def digest(file: ImageFile) -> bytes:
    """A hash of a whole file."""
    file.seek(0)
    return hashlib.blake2b(file.read(), digest_size=16).digest()


def _digest(images: Images, position: int) -> bytes:
    with images.store.open(position) as file:
        return digest(file)


def _ends(images: Images, position: int) -> tuple[int, bytes] | None:
    """Length and a hash of the first and last bytes; None for a file that cannot be opened."""
    try:
        with images.store.open(position) as file:
            start, length = file.read(ENDS), file.seek(0, 2)
            file.seek(max(0, length - ENDS))
            return length, hashlib.blake2b(start + file.read(), digest_size=16).digest()
    except OSError:
        return None


def shared_by_split(opened: Sequence[Images]) -> dict[str, dict[str, list[Shared]]]:
    """For each split, by the name of each earlier one, its image files that are in that one too."""
    found = {
        later.split: {other.split: shared_files(later, other) for other in opened[:place]}
        for place, later in enumerate(opened)
    }
    return {split: {other: files for other, files in shared.items() if files} for split, shared in found.items()}
