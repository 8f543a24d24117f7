"""docs/coming-from.md: what it says of another library and what it says of ours give the same numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming-from.md"
FENCE = re.compile(r'^```python title="(theirs|ours)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_both_sides_give_the_same(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side in a namespace of its own, from top to bottom in one folder; after each of our blocks, its `result` and
    that of their last block are the same tensors."""
    blocks = FENCE.findall(SECTIONS[section])
    for module in set(re.findall(r"^(?:from|import) (\w+)", "".join(code for _, code in blocks), re.MULTILINE)):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    assert SECTIONS[section].count("```python") == len(blocks), "a block that says whose it is not would not be run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sides: dict[str, dict[str, Any]] = {"theirs": {}, "ours": {}}
    compared = 0
    for side, code in blocks:
        exec(compile(code, PAGE.name, "exec"), sides[side])
        if side == "ours":
            expected, found = (sides[each].pop("result") for each in ("theirs", "ours"))
            assert len(expected) == len(found) > 0
            for mine, other in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 0
