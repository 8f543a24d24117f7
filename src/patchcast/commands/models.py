"""`patchcast models`: list backbones and their capabilities. Imports neither torch nor timm."""

from __future__ import annotations

import difflib
import shutil
import sys

from patchcast.backbones.capabilities import NEEDS, OWN_NETWORKS
from patchcast.backbones.support import IN_TIMM, Support, made_for, support, table


def models(pattern: str, method: str | None) -> None:
    """Print the architectures whose name matches, optionally only those that a method can use.

    Raises:
        ValueError: if the method has its own networks, or nothing matches.
    """
    if method in OWN_NETWORKS:
        raise ValueError(f"{method} has its own networks: imagegpt_s, imagegpt_m, imagegpt_l, imagegpt_xl, imagegpt")
    matching = support(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")
    if not matching:
        families = {row.name.split("_")[0]: None for row in table()}
        near = difflib.get_close_matches(pattern.strip("*?"), [*families, *(row.name for row in table())], n=3)
        raise ValueError(f"no model matches {pattern!r}{'; there are ' if near else ''}{', '.join(near)}")
    rows = [row for row in matching if method is None or row.suits(method)]
    if not rows:
        others = [other for other in NEEDS if any(row.suits(other) for row in matching)]
        raise ValueError(f"no model matches {pattern!r} that {method} can use; {', '.join(others)} can")
    print(f"{len(rows)} architectures of timm {made_for()}\n")
    header = ("name", *IN_TIMM, "image", "unit", "class")
    lines = columns([header, *(cells(row) for row in rows)])
    # In a terminal the class may be cut; in a file or pipe nothing is.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(line[:room] for line in lines))
    if left := [row for row in matching if row not in rows]:
        others = [other for other in NEEDS if all(row.suits(other) for row in left)]
        print(f"\n{len(left)} more match and cannot run {method}; all of them can run {', '.join(others)}.")


def cells(row: Support) -> tuple[str, ...]:
    """The cells of an architecture: capabilities, and the sizes of image and unit (one number if square)."""
    sizes = (f"{size[0]}" if size[0] == size[1] else "{}x{}".format(*size) for size in (row.image_size, row.stride))
    return (row.name, *("yes" if capability in row.can else "" for capability in IN_TIMM), *sizes, row.model_class)


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines of aligned columns.

    >>> columns([("name", "unit"), ("a_long_name", "16")])
    ['name         unit', 'a_long_name  16']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
