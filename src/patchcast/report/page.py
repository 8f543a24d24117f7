"""The page: plain HTML with inline style, for any width, light and dark; no scripts, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


class Html(str):
    """HTML. Any other text is escaped."""

    __slots__ = ()


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
    told: str
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
    head = "".join(
        f'<div class="tile"><div class="value">{escape(tile.value)}</div><div class="name">{escape(tile.name)}</div>'
        f'<div class="beside">{escape(tile.beside)}</div></div>'
        for tile in tiles
    )
    large = f'<div class="tiles">{head}</div>' if tiles else ""
    body = "".join(
        f'<section><h2>{escape(section.title)}</h2><p class="told">{escape(section.told)}</p>'
        f"{''.join(section.body)}</section>"
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>'
        f"{answers}{large}{body}"
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, strong: int | None = None) -> Html:
    """A table whose first column has names; row `strong` is highlighted.

    >>> html_table(["network", "kNN"], [["ours", "91.0"]]).count("<td>")
    1
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = ""
    for place, (name, *cells) in enumerate(rows):
        opening = '<tr class="strong">' if place == strong else "<tr>"
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines += f'{opening}<th scope="row">{escape(name)}</th>{values}</tr>'
    return Html(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>')


def matrix_table(names: Sequence[str], counts: np.ndarray, *, percent: bool = False) -> Html:
    """Counts by row and column, colored by their share of the row; zeros are left out.

    >>> matrix_table(["cat", "dog"], np.array([[3, 1], [0, 2]])).count('<td style="--share: 100">2</td>')
    1

    Args:
        percent: write the shares instead of the counts.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = ""
    for name, row in zip(names, counts, strict=True):
        shares = 100 * row / max(1, row.sum())
        texts = [f"{share:.0f}" if percent else f"{count:,}" for share, count in zip(shares, row, strict=True)]
        cells = "".join(
            f'<td style="--share: {share:.0f}">{text}</td>' if count else "<td></td>"
            for share, text, count in zip(shares, texts, row, strict=True)
        )
        lines += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return Html(
        f'<div class="scroll"><table class="matrix"><thead><tr><th scope="col">true \\ predicted</th>{head}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def definitions(values: Mapping[str, str], *, name: str = "") -> Html:
    """Names and values next to each other.

    >>> definitions({"seed": "0"})
    '<dl><div><dt>seed</dt><dd>0</dd></div></dl>'
    """
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    opening = f'<dl class="{name}">' if name else "<dl>"
    return Html(f"{opening}{pairs}</dl>")


def commands(lines: Sequence[str]) -> Html:
    """Commands, one per line.

    >>> commands(["ls <x>"])
    '<pre class="commands">ls &lt;x&gt;</pre>'
    """
    return Html(f'<pre class="commands">{escape(chr(10).join(lines))}</pre>')


def folded(title: str, text: str) -> Html:
    """Collapsed text that opens on click."""
    return Html(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")


def side_by_side(parts: Sequence[Html]) -> Html:
    """Next to each other if there is room, else one below the other."""
    return Html(f'<div class="beside-each-other">{"".join(parts)}</div>')


def subheading(text: str) -> Html:
    return Html(f"<h3>{escape(text)}</h3>")
