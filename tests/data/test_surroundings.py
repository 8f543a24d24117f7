"""What strangers' machines do to a run: names that are no UTF-8, workers that stop, images that are huge."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from patchcast.cli import main
from patchcast.data import Journal, check, open_images, waiting
from patchcast.data.waiting import PatientLoader
from tests.data.test_sources import draw, values, write
from tests.data.test_tar import pack, png

ODD = os.fsdecode(b"caf\xe9")


def sources(root):
    """A folder, a tar file and a parquet file with names that are no UTF-8."""
    for number, name in enumerate((f"{ODD}/1", "b/2")):
        draw(root / f"folder {ODD}" / f"{name}{ODD}.png", number)
    yield str(root / f"folder {ODD}")
    yield str(pack(root / f"{ODD}.tar", {f"{ODD}/1.png": png(0), "b/2.png": png(1)}))
    yield str(write(root / "a.parquet", rows=2).rename(root / f"{ODD}.parquet"))


def test_names_that_are_no_utf8_are_read_shown_and_written_down(tmp_path, capsys):
    for source in sources(tmp_path):
        images = open_images(source)
        assert sorted(values(images)) == [0, 1]
        shown = [images.name, *(images.store.path(place) for place in range(2)), *(images.class_names or [])]
        assert any("\\xe9" in name for name in shown)
        for name in shown:
            name.encode()  # raises for bytes that are no text
        assert json.loads(json.dumps(check(images).to_dict()))["readable"] == 2
        assert main(["data", "check", source, "--workers", "0"]) == 0
    assert "caf\\" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".parquet", ".safetensors"])
def test_embed_writes_names_that_are_no_utf8(tmp_path, ending):
    source = next(sources(tmp_path))
    out = tmp_path / f"features{ending}"
    assert main(["embed", "test_vit", "--untrained", "--data", source, "--out", str(out)]) == 0
    assert out.stat().st_size > 100


@pytest.mark.filterwarnings("ignore:skipped")
def test_the_journal_holds_names_that_are_no_utf8(tmp_path):
    source = next(sources(tmp_path))
    (tmp_path / f"folder {ODD}" / "b" / f"{ODD}.jpg").write_bytes(b"")
    images = open_images(source)
    journal = Journal(tmp_path / "bad-images.txt")
    images.write_down(journal)
    assert list(journal.close().values()) == ["empty file"]
    assert "\\xe9" in (tmp_path / "bad-images.txt").read_text(encoding="utf-8")


# ---- stopped workers -------------------------------------------------------------------------------------------------


class Slow(Dataset):
    """Its first item stops the process that reads it."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return torch.tensor(index)


def test_a_stopped_worker_is_named(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "PATIENCE", 0.1)
    batches = iter(PatientLoader(Slow(), batch_size=2, num_workers=1))
    said = []

    def continue_it(text, file, flush):
        said.append(text)
        os.kill(int(text.partition("processes ")[2].split()[0]), signal.SIGCONT)

    monkeypatch.setattr(waiting, "print", continue_it, raising=False)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert "stopped" in said[0]
    assert said[0].startswith("no batch for ")


def test_it_is_said_too_where_no_workers_read(monkeypatch):
    said = []
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    monkeypatch.setattr(waiting, "print", lambda text, **_: said.append(text), raising=False)

    class Dead(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            while not said:
                time.sleep(0.001)
            return index

    assert [batch.tolist() for batch in PatientLoader(Dead(), num_workers=0)] == [[0]]
    assert "this process is reading images; a disk that does not answer" in said[0]


def test_messages_are_rare_and_end_with_the_batches(monkeypatch):
    said = []
    monkeypatch.setattr(waiting, "print", lambda *given, **_: said.append(given), raising=False)

    def slow():
        while len(said) < 3:
            time.sleep(0.001)
        yield 1

    began = time.monotonic()
    assert list(waiting.watch(slow(), patience=0.01)) == [1]
    assert time.monotonic() - began >= 0.04, "at 1, 2 and 4 times the patience"
    assert list(waiting.watch(iter([1, 2, 3]), patience=60.0)) == [1, 2, 3]


# ---- huge images -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:skipped")
def test_the_limit_of_pixels_is_an_option(tmp_path, monkeypatch, capsys):
    from PIL import Image

    draw(tmp_path / "small.png", 1)
    draw(tmp_path / "wide.png", 2, size=(30, 40))
    draw(tmp_path / "wide.jpg", 3, size=(30, 40))
    assert len(open_images(str(tmp_path))) == 3
    assert len(open_images(str(tmp_path), max_pixels=1000)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    images = open_images(str(tmp_path))
    (reason,) = {bad.reason for bad in images.unreadable}
    assert reason.startswith("decompression bomb: (1200 pixels) exceeds limit of 1000 pixels; --max_pixels ")
    assert len(values(open_images(str(tmp_path), max_pixels=1200))) == 3
    assert Image.MAX_IMAGE_PIXELS == 500
    assert main(["data", "check", str(tmp_path), "--workers", "0"]) == 1
    assert main(["data", "check", str(tmp_path), "--workers", "0", "--max_pixels", "1200"]) == 0
    with pytest.raises(ValueError, match="max_pixels 0"):
        open_images(str(tmp_path), max_pixels=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_no_image_and_does_not_block(tmp_path):
    draw(tmp_path / "a.png", 1)
    os.mkfifo(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"skipped .*b.png: not a regular file"):
        assert len(open_images(str(tmp_path))) == 1
