"""Shares and their intervals, as JSON files have them, in per cent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent_of(share: Mapping[str, Any] | None, unit: str = " %") -> str:
    """A share as JSON files have it, in per cent; a dash for None.

    >>> percent_of({"value": 0.5}), percent_of(None)
    ('50.0 %', '–')
    """
    return f"{100 * share['value']:.1f}{unit}" if share else "–"


def interval_of(share: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent.

    >>> interval_of({"value": 0.5, "low": 0.4, "high": 0.6})
    '50.0 [40.0, 60.0]'
    """
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
