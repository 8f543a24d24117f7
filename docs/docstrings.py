"""Docstrings as the site shows them: doctest lines as code, and a blank line before each section."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Attributes|Returns|Raises|Yields):\n)")
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = DOCTEST.sub(lambda lines: f"```pycon\n{lines[0]}\n```", obj.docstring.value)
            obj.docstring.value = SECTION.sub("\n\n", text)
