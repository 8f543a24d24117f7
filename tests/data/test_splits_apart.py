"""What is held out stays apart from what is trained on: no stand-ins across, and equal files are counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcast.cli import main
from patchcast.data import EvalLoader, EvalSet, Evaluate, open_images, open_source
from patchcast.data.duplicates import shared_files
from tests.data.test_decode import encode
from tests.data.test_sources import draw

FEW = ["--draws", "2", "--per_class", "1"]


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "jpeg", quality=95).getvalue()


def half_broken(root: Path, count: int = 80) -> Path:
    """Images of two classes; the pixels of every second one are cut off."""
    for number in range(count):
        file = root / "ab"[number % 4 > 1] / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = noise(number)
        file.write_bytes(content if number % 2 else content[: len(content) * 3 // 4])
    return root


@pytest.mark.filterwarnings("ignore:skipped")
def test_no_image_of_one_subset_stands_in_for_one_of_another(tmp_path):
    images = open_images(str(half_broken(tmp_path)))
    whole = {images[index].image.numpy().tobytes(): index for index in range(1, len(images), 2)}
    chosen = np.arange(20, 40)
    part = images.subset(chosen)
    seen = {whole[example.image.numpy().tobytes()] for example in part}
    assert seen == {21, 23, 25, 27, 29, 31, 33, 35, 37, 39}
    assert len(part.readable()) == 10
    assert part.readable().labels.tolist() == part.labels[1::2].tolist()


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_unreadable_images_out_and_counts_them(tmp_path, workers):
    images = open_images(str(half_broken(tmp_path, 24)))
    batches = list(EvalLoader(EvalSet(images, Evaluate((32, 32), (0.5,) * 3, (0.5,) * 3)), 8, workers))
    assert [len(labels) for _, labels in batches] == [4, 4, 4]
    assert [label for _, labels in batches for label in labels.tolist()] == images.labels[1::2].tolist()
    assert len(images.unreadable) == 12


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_batch_of_nothing_readable_is_no_batch(tmp_path):
    for number in range(4):
        content = noise(number)
        (tmp_path / f"{number}.jpg").write_bytes(content[: len(content) // 2] if number < 2 else content)
    images = open_images(str(tmp_path))
    batches = list(EvalLoader(EvalSet(images, Evaluate((32, 32), (0.5,) * 3, (0.5,) * 3)), 2))
    assert [len(labels) for _, labels in batches] == [2]
    with pytest.raises(ValueError, match=r"none of 2 images of .* can be read; .*0\.jpg: "):
        images.subset(np.arange(2)).readable()


@pytest.mark.filterwarnings("ignore:skipped")
def test_what_a_probe_is_fitted_on_and_judged_by_is_apart_and_counted(tmp_path):
    labeled = open_source(str(half_broken(tmp_path))).labeled()
    fitted, judged = ({example.image.numpy().tobytes() for example in part} for part in (labeled.train, labeled.test))
    assert not fitted & judged
    assert len(labeled.train) + len(labeled.test) == len(fitted) + len(judged) == 40
    assert labeled.phrase.endswith("held out; 40 unreadable images left out")


def test_equal_files_in_two_splits_are_counted(tmp_path, capsys):
    for number in range(6):
        draw(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
    for number in (1, 2, 7, 8):
        draw(tmp_path / "test" / "ab"[number % 2] / f"other-{number}.png", number)
    train, test = open_images(str(tmp_path)), open_images(str(tmp_path), split="test")
    assert [shared.path.rpartition("-")[2] for shared in shared_files(test, train)] == ["2.png", "1.png"]
    assert open_source(str(tmp_path)).labeled().phrase.endswith("; 2 of the 4 test images are training images too")
    out = tmp_path / "report.json"
    assert main(["data", "check", str(tmp_path), "--workers", "0", "--out", str(out)]) == 0
    assert "2 images of test are in train too, byte for byte: " in capsys.readouterr().out
    by_split = {report["split"]: report["shared"] for report in json.loads(out.read_text())}
    assert by_split["train"] == {}
    assert len(by_split["test"]["train"]) == 2
    shutil.rmtree(tmp_path / "test")


def test_files_that_agree_at_both_ends_only_are_not_equal(tmp_path):
    for split, middle in (("train", b"\1"), ("test", b"\2")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.pgm").write_bytes(b"P5 128 128 255\n" + bytes(8192) + middle * 8 + bytes(8184))
    train, test = open_images(str(tmp_path)), open_images(str(tmp_path), split="test")
    assert shared_files(test, train) == []
    assert len(shared_files(test, test)) == 1
