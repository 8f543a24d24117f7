"""The pictures of the page on plans are those of today's plans."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


def test_the_pictures_are_those_of_the_plans(tmp_path: Path) -> None:
    shutil.copy(DOCS / "draw_plans.py", tmp_path)
    runpy.run_path(str(tmp_path / "draw_plans.py"), run_name="__main__")
    drawn = sorted((tmp_path / "images").glob("plan-*.png"))
    assert len(drawn) == 6
    for picture in drawn:
        assert f"images/{picture.name}" in (DOCS / "plans.md").read_text()
        # The outlines of letters and lines may differ between machines; the color of a unit does not.
        new, committed = (
            np.asarray(Image.open(each).convert("RGB").resize((60, 12)), dtype=float)
            for each in (picture, DOCS / "images" / picture.name)
        )
        assert np.abs(new - committed).max() < 40
