"""`patchcast data check`, as a person reads it, on every kind of source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcast.cli import main
from tests.data.test_sources import draw, write
from tests.data.test_tar import webdataset


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["data", "check", *arguments]) == code
    return re.sub(r"[ \t]+", " ", capsys.readouterr().out)


def test_a_folder_with_splits_labels_and_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, sizes in (("train", [(6, 8), (6, 8), (30, 40)]), ("test", [(6, 8)])):
        for number, size in enumerate(sizes):
            draw(tmp_path / split / ("cat", "dog")[number % 2] / f"{number}.png", 51, size=size)
    (tmp_path / "train" / "dog" / "bad.jpg").write_bytes(b"words")
    (tmp_path / "train" / "dog" / "empty [b].png").write_bytes(b"")
    out = tmp_path / "report.json"
    text = told(capsys, str(tmp_path), "--out", str(out), code=1)
    assert "6 images read of" in text
    assert "train 3 2 6 x 8 6 x 8 30 x 40" in text
    assert "test 1 0 6 x 8 6 x 8 6 x 8" in text
    assert "channel train mean deviation test mean deviation" in text
    assert "3 0.2 0 0.2 0" in text
    assert "…" not in text, "a terminal of 80 columns is wide enough"
    assert "cat 2 1" in text
    assert "dog 1 0" in text
    assert f"unreadable {tmp_path}/train/dog/bad.jpg: no known image format" in text
    assert f"unreadable {tmp_path}/train/dog/empty [b].png: empty file" in text
    assert text.endswith("2 cannot be read; training skips them.\n")
    first = json.loads(out.read_text())[0]
    assert (first["readable"], first["labels"], len(first["unreadable"])) == (3, {"0": 2, "1": 1}, 2)
    assert "train" not in told(capsys, str(tmp_path), "--split", "test").partition("channel")[0]


def test_every_kind_of_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "9 25 8" in told(capsys, "digits")
    webdataset(tmp_path / "a-0.tar", 0, 3, cls=lambda value: b"7")
    text = told(capsys, str(tmp_path / "a-{0..0}.tar"))
    assert "train 3 0 6 x 8" in text
    assert "7 3" in text
    assert "No labels." in told(capsys, str(write(tmp_path / "a.parquet")))
    Image.fromarray(np.full((5, 6), 6554, np.uint16)).save(tmp_path / "deep.tif")
    text = told(capsys, str(tmp_path))
    assert "train 1 0 5 x 6 5 x 6 5 x 6" in text
    assert "1 0.1 0" in text


def test_many_classes_and_many_bad_files_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(60):
        draw(tmp_path / f"class{number:02}" / "a.png")
        (tmp_path / f"class{number:02}" / "bad.png").write_bytes(b"")
    draw(tmp_path / "class00" / "b.png")
    text = told(capsys, str(tmp_path), code=1)
    assert "classes 60" in text
    assert "fewest images 1" in text
    assert "most images 2" in text
    assert "... and 10 more; --out FILE.json lists all" in text
    assert "of which at most 5 were read" in told(capsys, str(tmp_path), "--limit", "5", code=1)


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("patchcast: nowhere is not there; --data takes a folder")
    assert main(["data", "check", "digits", "--split", "val"]) == 2
    assert "digits has no split 'val'" in capsys.readouterr().err
