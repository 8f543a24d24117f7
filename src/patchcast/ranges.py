"""Ranges of numeric options, and the error for a number outside of its range. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`.

    >>> Range(low=0, high=1, without_high=True)
    at least 0 and below 1

    Attributes:
        without_low, without_high: whether the bound is excluded.
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        above = value > self.low if self.without_low else value >= self.low
        return above and (value < self.high if self.without_high else value <= self.high)

    def __repr__(self) -> str:
        words = []
        if self.low > -math.inf:
            words.append(f"{'above' if self.without_low else 'at least'} {self.low:g}")
        if self.high < math.inf:
            words.append(f"{'below' if self.without_high else 'at most'} {self.high:,}")
        return " and ".join(words) or "a finite number"


LARGEST = 2**31 - 1
"""Whole numbers above this overflow somewhere."""
MOST = {
    **dict.fromkeys(("image_size", "tile_size", "patch_size"), 2**16),
    "batch_size": 10**6, "workers": 1024, "draws": 10_000, "lidar": 1000, "max_pixels": 2**62, "count": 10_000,
}  # fmt: skip
"""Of options by name, where no machine does more: a larger number is a slip, which would end in a lack of memory."""
ANY = Range()
POSITIVE = Range(0, without_low=True)
NOT_NEGATIVE = Range(0)
AT_LEAST_1 = Range(1)
SEED = Range(0, 2**63 - 1)
SHARE = Range(0, 1, without_high=True)
"""From 0 to 1, without 1."""
POSITIVE_SHARE = Range(0, 1, without_low=True)
"""From 0 to 1, without 0."""


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], *, prefix: str = "") -> None:
    """Check numbers, and each number of a list or tuple; None is skipped.

    >>> check_ranges({"lr": 0.0, "steps": None}, {"lr": POSITIVE, "steps": AT_LEAST_1})
    Traceback (most recent call last):
        ...
    ValueError: lr must be above 0; got 0.0

    Args:
        prefix: of the names in the message, such as "--" for a command's options.
    Raises:
        ValueError: if a number is outside of its range; names it, its range and its value.
    """
    for name, allowed in ranges.items():
        value = values[name]
        if value is None:
            continue
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not numbers:
            raise ValueError(f"{prefix}{name} needs a number")
        shown = list(value) if isinstance(value, tuple) else value
        if not all(number in allowed for number in numbers):
            raise ValueError(f"{prefix}{name} must be {allowed}; got {shown!r}")
        most = MOST.get(name, LARGEST)
        if allowed.high == math.inf and any(isinstance(number, int) and number > most for number in numbers):
            raise ValueError(f"{prefix}{name} must be at most {most:,}; got {shown!r}")
