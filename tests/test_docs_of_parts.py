"""The code in the pages on parts, AIM and honesty runs as it stands, and the pictures are those of today's plans."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["plans.md", "tokenizers.md", "aim.md", "honesty.md"])
def test_the_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_pictures_are_those_of_the_plans(tmp_path: Path) -> None:
    shutil.copy(DOCS / "draw_plans.py", tmp_path)
    runpy.run_path(str(tmp_path / "draw_plans.py"), run_name="__main__")
    drawn = sorted((tmp_path / "images").glob("plan-*.png"))
    assert len(drawn) == 6
    for picture in drawn:
        assert f"images/{picture.name}" in (DOCS / "plans.md").read_text()
        # The outlines of letters and lines may differ between machines; the colour of a unit does not.
        new, committed = (
            np.asarray(Image.open(each).convert("RGB").resize((60, 12)), dtype=float)
            for each in (picture, DOCS / "images" / picture.name)
        )
        assert np.abs(new - committed).max() < 40
