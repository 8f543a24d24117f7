"""docs/finetune.md from its first command to its last, on small photographs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from patchcast.cli import main
from tests.classification.conftest import Photos

PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetune.md"
SMALLER = [*("--model", "test_vit", "--image_size", "16", "--patch_size", "4"), *("--steps", "2", "--workers", "0")]


def test_the_guide_from_beginning_to_end(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, target in (("labeled", photos.labeled), ("photos", photos.labeled), ("new_photos", photos.new)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "photo.jpg").write_bytes((photos.new / "red-0.png").read_bytes())
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["pretrain", "finetune", "predict", "report", "predict", "search"]
    for line in lines:
        words = shlex.split(line)[1:]
        assert main([*words, *(SMALLER if words[0] == "pretrain" else [])]) == 0, line
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "nearest.png").exists()
    assert (tmp_path / "models" / "first" / "report.html").exists()
