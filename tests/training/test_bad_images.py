"""Images that cannot be read, met by workers in the middle of a run: counted, listed, and told at its end."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcast.cli import main
from patchcast.data import Augment, EpochSampler, Journal, TrainSet, loader, open_images
from tests.training.test_looks import MODELS

COUNT = 24


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise that does not compress: the fifth ends in the middle of its pixels, and one has no bytes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    cut = folder / "05.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "void.png").touch()
    return folder


def test_what_workers_find_is_written_down(photos: Path, tmp_path: Path) -> None:
    """The truncated one shows when its pixels are decoded, which this process never does."""
    images, journal = open_images(str(photos)), Journal(tmp_path / "bad.txt")
    images.write_down(journal)
    train_set = TrainSet(images, Augment((8, 8), None, False, (0.5,) * 3, (0.3,) * 3), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in loader(train_set, EpochSampler(len(images), 8, seed=0, steps=5), workers=2):
            pass
    assert [Path(each.path).name for each in images.unreadable] == ["void.png"]
    assert [Path(name).name for name in journal.close()] == ["05.png", "void.png"]


def test_a_run_counts_and_lists_them(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["pretrain", "--method", "mae", *MODELS["mae"], "--data", str(photos), "--out", str(out)]
    assert main([*command, "--steps", "2", "--batch_size", "24", "--device", "cpu"]) == 0
    lines = (out / "bad-images.txt").read_text().splitlines()
    assert [Path(line.partition("\t")[0]).name for line in lines] == ["05.png", "void.png"]
    assert all(line.partition("\t")[2] for line in lines), "each with a reason"
    listed = json.loads((out / "metrics.json").read_text())["unreadable_images"]
    assert listed == [line.replace("\t", ": ") for line in lines]
    said = " ".join(capsys.readouterr().out.split())
    assert "2 images could not be read and were replaced by others" in said


def test_a_sound_source_leaves_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--method", "mae", *MODELS["mae"], "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*command, "--steps", "2", "--batch_size", "8"]) == 0
    assert not (tmp_path / "run" / "bad-images.txt").exists()
    assert "could not be read" not in capsys.readouterr().out


def test_names_of_any_kind_stay_in_their_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "bad.txt")
    for name in ("a\nb.png", "c\td.png", "\udcff.png"):
        journal.add(name, "cut\nshort")
    assert list(journal.close()) == ["a b.png", "c d.png", "\udcff.png"]
    assert journal.close() == dict.fromkeys(["a b.png", "c d.png", "\udcff.png"], "cut short")
    Journal(tmp_path / "nowhere" / "bad.txt").add("a.png", "cut")
    assert not (tmp_path / "nowhere").exists()
