"""`patchcast models`: which backbones there are, and what they can do. Imports neither torch nor timm."""

from __future__ import annotations

import difflib

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast.backbones.capabilities import Capability
from patchcast.backbones.support import IN_TIMM, Support, made_for, support, table

NEEDS: dict[str, Capability] = {
    "aim": "attend",
    "aim_features": "attend",
    "beit": "replace",
    "ijepa": "replace",  # by dropping where the backbone can
    "mae": "drop",
    "simmim": "replace",
}


OWN_NETWORKS = ("imagegpt", "imagegpt_masked")


def models(pattern: str, method: str | None) -> None:
    """Print the architectures whose name matches, or those of them that a method can be run on.

    Raises:
        ValueError: if there is no such method, or nothing matches.
    """
    if method in OWN_NETWORKS:
        raise ValueError(f"{method} has networks of its own: imagegpt_s, imagegpt_m, imagegpt_l, imagegpt_xl, imagegpt")
    if method is not None and method not in NEEDS:
        raise ValueError(f"no method is called {method!r}; there are {', '.join(NEEDS)}")
    wildcard = pattern if any(each in pattern for each in "*?[") else f"*{pattern}*"
    rows = [row for row in support(wildcard) if method is None or suits(row, method)]
    if not rows:
        near = difflib.get_close_matches(pattern, [row.name for row in table()], n=3)
        hint = f"; there are {', '.join(near)}" if near else ""
        raise ValueError(f"no model matches {pattern!r}{f' that {method} can be run on' if method else ''}{hint}")
    shown = Table(box=SIMPLE_HEAD, title=f"{len(rows)} architectures of timm {made_for()}", title_justify="left")
    shown.add_column("name", no_wrap=True)
    shown.add_column("class")
    for each in IN_TIMM:
        shown.add_column(each, justify="center")
    shown.add_column("image", justify="right")
    shown.add_column("unit", justify="right")
    for row in rows:
        can = ["yes" if each in row.can else "" for each in IN_TIMM]
        size, unit = (f"{pair[0]}x{pair[1]}" for pair in (row.image_size, row.stride))
        shown.add_row(row.name, row.model_class, *can, size, unit)
    Console().print(shown)


def suits(row: Support, method: str) -> bool:
    """Whether a method can be run on this architecture; AIM needs a stem that keeps pixels in their unit."""
    return NEEDS[method] in row.can and (NEEDS[method] != "attend" or row.is_causal_for_pixels)
