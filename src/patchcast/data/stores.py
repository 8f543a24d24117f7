"""`Store`: encoded images, one open file per position.

A new kind of source is a new store and a function that lists its splits; all else stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int64

from patchcast.data.decode import ImageFile


class Store(ABC):
    """The images of one split, encoded, in a fixed order.

    A store travels to the loader's workers by pickle: it holds paths, labels and at most small images.

    Attributes:
        labels: one a position, -1 where there is none; None where the source has no labels.
        class_names: what the labels mean, if the source says so.
        no_labels: why there are none, where it looks as if there were some.
    """

    labels: Int64[np.ndarray, " N"] | None = None
    class_names: list[str] | None = None
    no_labels: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, position: int) -> ImageFile:
        """The image file at a position, opened. The caller closes it."""

    @abstractmethod
    def path(self, position: int) -> str:
        """The name by which a person finds that image."""


Splits = Mapping[str, Callable[[], Store]]
"""By name, each split of a source; a store is opened only when its split is asked for."""
