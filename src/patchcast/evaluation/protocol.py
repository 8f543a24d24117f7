"""`Protocol`: the interface of evaluation protocols, which `patchcast probe` applies to every row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from patchcast.backbones import Backbone
from patchcast.data import Evaluate
from patchcast.data.names import escape
from patchcast.evaluation.intervals import Interval, paired_accuracy_difference
from patchcast.evaluation.labeled import Labeled, open_labeled

OURS, UNTRAINED = "pretrained", "untrained"
"""Names of the rows of the probed network, and of the same network before training."""

WIDEST = 0.8
"""Width of an interval of a difference, from which on it is not shown: it would be "anything between"."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Subject:
    """A network and its preprocessing.

    Attributes:
        evaluate: deterministic preprocessing.
        augment: the augmentation of training.
        size: (height, width) of the input.
        is_trained: False for initial weights.
    """

    backbone: Backbone
    evaluate: Evaluate
    augment: Callable[[Tensor, int], Tensor]
    size: tuple[int, int]
    is_trained: bool = True


@dataclass(frozen=True)
class Request:
    """The arguments of every protocol.

    Attributes:
        data: the source of images.
        channels: of the images.
        is_own: whether the data is the run's own, and not given by `--data`.
        limit: maximum number of training images.
        device: where networks run.
        cache: folder for cached features.
        reading: how the images are read: `image_column`, `label_column` and `max_pixels` of `open_source`.
        held_out_share: share of the data that the run held out, if it is the run's own.
        split: that is judged on; None for the test split, or else the validation split.
    """

    data: str
    channels: int
    is_own: bool = False
    limit: int | None = None
    device: str = "cpu"
    cache: Path | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    held_out_share: float = 0.0
    split: str | None = None

    def labeled(self) -> Labeled:
        """The labeled images.

        Raises:
            ValueError: if they have no labels.
        """
        return open_labeled(
            self.data,
            channels=self.channels,
            limit=self.limit,
            held_out_share=self.held_out_share,
            split=self.split,
            **self.reading,
        )


class Protocol(ABC, Generic[Result]):
    """One way to measure networks on labeled images. To add one, write a file like `layer_protocol.py` and a row of
    `PROTOCOLS`, with its options in `patchcast.options.PROBES`.

    Attributes:
        file: name, without its ending, of the JSON file in a run's folder.
        description: of the data, as text.
        cache: folder for cached features; None for none.
    """

    file: str
    description: str
    cache: Path | None = None

    @abstractmethod
    def __init__(self, options: Any, request: Request, subject: Subject) -> None:
        """Open the data and check the options, before anything is computed."""

    @abstractmethod
    def measure(self, subject: Subject) -> Result:
        """Measure one network."""

    def baselines(self, subject: Subject) -> Iterator[tuple[str, Callable[[], Result]]]:
        """Names of rows without a network, and functions that measure them on the network's preprocessed images."""
        return iter(())

    @abstractmethod
    def tables(self, results: Mapping[str, Result]) -> list[Table]:
        """Tables for the terminal, with one row per result."""

    @abstractmethod
    def record(self, results: Mapping[str, Result]) -> dict[str, Any]:
        """The content of the JSON file: each result by its name, and common entries."""

    def correct(self, result: Result) -> Tensor | None:
        """The test images that were classified correctly, if there are any; rows are then compared image by image."""
        return None

    def comparisons(self, results: Mapping[str, Result]) -> list[str]:
        """One line per row that the pretrained network is compared with."""
        ours = self.correct(results[OURS]) if OURS in results else None
        others = {name: self.correct(result) for name, result in results.items() if name != OURS}
        return [
            f"vs {name}: {points(paired_accuracy_difference(ours, other))}"
            for name, other in others.items()
            if ours is not None and other is not None
        ]

    def save_pictures(self, results: Mapping[str, Result], out: Path) -> list[Path]:
        """Draw pictures next to the JSON file; returns their paths."""
        return []


def new_table(description: str, first: str, *columns: str, title: str = "Accuracy in %") -> Table:
    """A table whose first column names the rows."""
    table = Table(box=SIMPLE_HEAD, title=f"{title} on {escape(description)}", title_justify="left", title_style="bold")
    table.caption_justify = "left"
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def percent(interval: Interval, form: str = ".1f") -> str:
    """A share with its interval, in per cent.

    >>> percent(Interval(0.5, 0.4, 0.6))
    '50.0 [40.0, 60.0]'
    """
    value, low, high = (format(100 * share, form) for share in interval)
    return f"{value} [{low}, {high}]"


def points(gained: Interval) -> str:
    """A difference of accuracies in percentage points.

    >>> points(Interval(0.05, -0.012, 0.112))
    '+5.0 points [-1.2, +11.2]'
    >>> points(Interval(0.5, -1.0, 1.0))
    '+50.0 points (too few test images for an interval)'
    """
    if gained.high - gained.low >= WIDEST:
        return f"{100 * gained.value:+.1f} points (too few test images for an interval)"
    return f"{100 * gained.value:+.1f} points [{100 * gained.low:+.1f}, {100 * gained.high:+.1f}]"
