"""The code in the page on ImageGPT runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "imagegpt.md"


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["loss"].item() < 2.5  # from ln 16
    assert names["halves"].shape == (4, 3, 64)
    assert (tmp_path / "drawing.gif").stat().st_size > 0


def test_its_pictures_are_there() -> None:
    for picture in re.findall(r"\]\((images/.*?)\)", PAGE.read_text()):
        assert (PAGE.parent / picture).stat().st_size < 200_000, picture
