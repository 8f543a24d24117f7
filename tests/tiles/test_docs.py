"""The picture of the page on tiles is today's."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_that_of_today(tmp_path: Path) -> None:
    shutil.copy(DOCS / "draw_tiles.py", tmp_path)
    runpy.run_path(str(tmp_path / "draw_tiles.py"), run_name="__main__")
    # The outlines of letters and lines may differ between machines; the color of a unit does not.
    new, committed = (
        np.asarray(Image.open(folder / "images" / "tiles.png").convert("RGB").resize((60, 12)), dtype=float)
        for folder in (tmp_path, DOCS)
    )
    assert np.abs(new - committed).max() < 40
