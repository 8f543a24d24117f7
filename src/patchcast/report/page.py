"""The page: plain HTML with inline style, for any width, light and dark; no scripts, nothing is downloaded.

Its HTML is in `page.html.jinja` and `parts.html.jinja`, which escape all text that is not HTML of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup as Html

from patchcast import __version__

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=True,
)


@dataclass(frozen=True)
class Tile:
    """A large number with its name and a number to compare it with."""

    value: str
    name: str
    beside: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and the content."""

    title: str
    note: str
    body: Sequence[Html]


def page(
    title: str,
    subtitle: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    footer: str,
    *,
    answers: Html = Html(""),  # noqa: B008, an immutable string
) -> str:
    """A whole HTML file.

    >>> text = page("A <run>", "on digits", [Tile("91 %", "kNN")], [Section("Loss", "It falls.", [])], "made today")
    >>> "A &lt;run&gt;" in text, text.count("<section"), "http" in text
    (True, 1, False)
    """
    return _TEMPLATES.get_template("page.html.jinja").render(
        title=title, subtitle=subtitle, tiles=tiles, sections=sections, footer=footer, answers=answers
    )


def page_footer() -> str:
    """When, and by which versions."""
    return (
        f"Written on {date.today().isoformat()} by patchcast {__version__} (torch {torch.__version__}, timm "
        f"{timm.__version__}). This file loads nothing from the network."
    )


def part(macro: str, **values: Any) -> Html:
    """HTML by a macro of `parts.html.jinja`.

    >>> part("subheading", text="a < b")
    Markup('<h3>a &lt; b</h3>')
    """
    return getattr(_TEMPLATES.get_template("parts.html.jinja").module, macro)(**values).strip()


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, strong: int | None = None) -> Html:
    """A table whose first column has names; row `strong` is highlighted.

    >>> html_table(["network", "kNN"], [["ours", "91.0"]]).count("<td>")
    1
    """
    return part("table", header=header, rows=rows, strong=strong)


def matrix_table(names: Sequence[str], counts: np.ndarray, *, percent: bool = False) -> Html:
    """Counts by row and column, colored by their share of the row; zeros are left out.

    >>> matrix_table(["cat", "dog"], np.array([[3, 1], [0, 2]])).count('<td style="--share: 100">2</td>')
    1

    Args:
        percent: write the shares instead of the counts.
    """
    rows = []
    for row in counts:
        shares = [f"{share:.0f}" for share in 100 * row / max(1, row.sum())]
        texts = shares if percent else [f"{count:,}" for count in row]
        rows.append([(text if count else "", share) for text, share, count in zip(texts, shares, row, strict=True)])
    return part("matrix", names=names, rows=rows)


def definitions(values: Mapping[str, str], *, name: str = "") -> Html:
    """Names and values next to each other.

    >>> print(definitions({"seed": "0"}))
    <dl><div><dt>seed</dt><dd>0</dd></div></dl>
    """
    return part("definitions", values=values, name=name)


def commands(lines: Sequence[str]) -> Html:
    """Commands, one per line.

    >>> print(commands(["ls <x>"]))
    <pre class="commands">ls &lt;x&gt;</pre>
    """
    return part("commands", lines=lines)


def folded(title: str, text: str) -> Html:
    """Collapsed text that opens on click."""
    return part("folded", title=title, text=text)


def side_by_side(parts: Sequence[Html]) -> Html:
    """Next to each other if there is room, else one below the other."""
    return part("side_by_side", parts=parts)


def subheading(text: str) -> Html:
    return part("subheading", text=text)


def remark(text: str) -> Html:
    """A sentence below a table."""
    return part("remark", text=text)
