"""`Store`: access to encoded images by position.

To add a kind of source, write a store and a function that lists its splits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int64

from patchcast.data.decode import ImageFile


class Store(ABC):
    """The images of one split, encoded, in a fixed order.

    A store is pickled for the loader's workers, so it holds paths, labels and at most small images.

    Attributes:
        labels: one per position, -1 for unlabeled images; None if the source has no labels.
        class_names: names of the classes, if the source has them.
        no_labels: why there are none, where it looks as if there were some.
    """

    labels: Int64[np.ndarray, " N"] | None = None
    class_names: list[str] | None = None
    no_labels: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, position: int) -> ImageFile:
        """Open the image file at a position. The caller closes it."""

    @abstractmethod
    def path(self, position: int) -> str:
        """A path or name by which a person can find the image."""


Splits = Mapping[str, Callable[[], Store]]
"""The splits of a source, by name; a split's store is opened on first access."""
