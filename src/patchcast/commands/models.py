"""`patchcast models`: which backbones there are, and what they can do. Imports neither torch nor timm."""

from __future__ import annotations

import difflib
import shutil
import sys

from patchcast.backbones.capabilities import NEEDS, OWN_NETWORKS
from patchcast.backbones.support import IN_TIMM, Support, made_for, support, table


def models(pattern: str, method: str | None) -> None:
    """Print the architectures whose name matches, or those of them that a method can be run on.

    Raises:
        ValueError: if the method has networks of its own, or nothing matches.
    """
    if method in OWN_NETWORKS:
        raise ValueError(f"{method} has networks of its own: imagegpt_s, imagegpt_m, imagegpt_l, imagegpt_xl, imagegpt")
    matching = support(pattern if any(each in pattern for each in "*?[") else f"*{pattern}*")
    if not matching:
        families = {row.name.split("_")[0]: None for row in table()}
        near = difflib.get_close_matches(pattern.strip("*?"), [*families, *(row.name for row in table())], n=3)
        raise ValueError(f"no model matches {pattern!r}{'; there are ' if near else ''}{', '.join(near)}")
    rows = [row for row in matching if method is None or suits(row, method)]
    if not rows:
        others = [each for each in NEEDS if any(suits(row, each) for row in matching)]
        raise ValueError(f"no model matches {pattern!r} that {method} can be run on; {', '.join(others)} can")
    print(f"{len(rows)} architectures of timm {made_for()}\n")
    header = ("name", *IN_TIMM, "image", "unit", "class")
    lines = columns([header, *(cells(row) for row in rows)])
    # Nothing is cut for a file, or for grep; in a terminal the class may be.
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(line[:room] for line in lines))


def cells(row: Support) -> tuple[str, ...]:
    """One architecture's line: what it can do, and height and width of image and unit, or one number for both."""
    sizes = (f"{size[0]}" if size[0] == size[1] else "{}x{}".format(*size) for size in (row.image_size, row.stride))
    return (row.name, *("yes" if each in row.can else "" for each in IN_TIMM), *sizes, row.model_class)


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines of aligned columns.

    >>> columns([("name", "unit"), ("a_long_name", "16")])
    ['name         unit', 'a_long_name  16']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def suits(row: Support, method: str) -> bool:
    """Whether a method can be run on this architecture; AIM needs a stem that keeps pixels in their unit."""
    return any(need in row.can and (need != "attend" or row.is_causal_for_pixels) for need in NEEDS[method])
