"""scikit-learn's digits: 1,797 real scans of handwritten digits, 8x8, installed with scikit-learn."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import numpy as np
from jaxtyping import Int64, UInt8

from patchcast.data.decode import ImageFile
from patchcast.data.stores import Splits, Store


class DigitsStore(Store):
    """Digits as PGM files in memory: an eleven-byte header and 64 gray values each."""

    def __init__(self, pixels: UInt8[np.ndarray, "N H W"], labels: Int64[np.ndarray, " N"], rows: np.ndarray) -> None:
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
        return f"digits, row {self.rows[position]}"


def digits_splits() -> Splits:
    """`train` (1,437) and `test` (360): 20 % of each digit, by `StratifiedShuffleSplit(random_state=0)`."""
    return {"train": partial(_open, is_test=False), "test": partial(_open, is_test=True)}


def _open(is_test: bool) -> DigitsStore:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedShuffleSplit

    bunch = load_digits()
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    rows = np.sort(next(split.split(bunch.images, bunch.target))[is_test])
    pixels = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)  # values 0..16
    return DigitsStore(pixels, bunch.target[rows].astype(np.int64), rows)
