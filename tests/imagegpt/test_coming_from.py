"""docs/coming-from/transformers.md: their code and ours give the same numbers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from" / "transformers.md"
FENCE = re.compile(r'^```py title="(theirs|ours)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
SECTION = PAGE.read_text()


def test_both_sides_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side in a namespace of its own, from top to bottom in one folder; after each of our blocks, its `result` and
    that of their last block are the same tensors."""
    blocks = FENCE.findall(SECTION)
    for module in set(re.findall(r"^(?:from|import) (\w+)", "".join(code for _, code in blocks), re.MULTILINE)):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    assert SECTION.count("```") == 2 * len(blocks), "a block that says whose it is not would not be run"
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
