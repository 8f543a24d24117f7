"""Caches belong to content, carry checksums, and are made again when they are damaged."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from patchcast.backbones.sequence import ViT
from patchcast.cli import main
from patchcast.data import Evaluate, folder, open_images, parquet
from patchcast.data.fingerprint import fingerprint_images
from patchcast.data.seals import matches_seal, seal
from patchcast.evaluation import extract
from patchcast.files import write_cache, write_whole
from patchcast.geometry import Grid
from patchcast.tokenizers import encoded
from patchcast.tokenizers.encoded import encode_images
from patchcast.tokenizers.palette import Palette, fit_palette
from tests.data.test_sources import draw, values, write
from tests.data.test_tar import webdataset

EVALUATE = Evaluate((6, 8), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "patchcast"


@functools.cache
def palette() -> Palette:
    digits = open_images("digits", channels=3)
    return fit_palette([tuple(digits[place]) for place in range(200)], 16)


def codes_of(source: Path) -> np.ndarray:
    images = open_images(str(source))
    return np.array(encode_images(images, palette(), EVALUATE, Grid(6, 8)).codes)


def test_codes_of_replaced_images_are_made_again(tmp_path, cache):
    for number in range(200):
        draw(tmp_path / "photos" / f"{number:03}.png", number)
    before = codes_of(tmp_path / "photos")
    times = {file: file.stat() for file in (tmp_path / "photos").iterdir()}
    kept = set(np.linspace(0, 199, encoded.KEY_SAMPLE).astype(int))
    for number in set(range(200)) - kept:  # exactly those that the sample of 64 does not see
        file = draw(tmp_path / "photos" / f"{number:03}.png", 255 - number)
        os.utime(file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
    after = codes_of(tmp_path / "photos")
    assert (before != after).any(axis=1).sum() > 100
    assert np.array_equal(codes_of(tmp_path / "photos"), after)


def test_a_changed_label_is_another_source(tmp_path):
    first = open_images(str(write(tmp_path / "a.parquet", rows=200, label=[0] * 200)))
    second = open_images(str(write(tmp_path / "b.parquet", rows=200, label=[0] * 150 + [1] * 50)))
    assert fingerprint_images(first) != fingerprint_images(second)
    assert fingerprint_images(list(first)) != fingerprint_images(list(second))


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "half zeroed": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "other dtype": lambda content: content.replace(b"'|u1'", b"'|i1'"),
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "text": lambda content: b"words",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["-labels.npy", ".npy"])
def test_damaged_codes_are_made_again(tmp_path, cache, damage, which):
    for number in range(20):
        draw(tmp_path / "photos" / "ab"[number % 2] / f"{number:03}.png", number * 12)
    sound = codes_of(tmp_path / "photos")
    (file,) = [each for each in cache.glob(f"codes-*{which}") if which != ".npy" or "labels" not in each.name]
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert np.array_equal(codes_of(tmp_path / "photos"), sound)
    assert file.read_bytes() == whole


def test_a_full_disk_is_one_sentence(tmp_path, cache, monkeypatch):
    draw(tmp_path / "photos" / "a.png", 5)
    draw(tmp_path / "photos" / "b.png", 9)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(ValueError, match=r"^the codes of 2 images need 0 MiB in .*: No space left on device; set"):
        codes_of(tmp_path / "photos")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fail)
    with pytest.raises(ValueError, match="No space left on device"):
        codes_of(tmp_path / "photos")
    assert not list(cache.glob("*codes*"))


def test_a_damaged_arrow_copy_is_written_again(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(parquet, "IN_MEMORY_BYTES", 0)
    source = str(write(tmp_path / "some.parquet", rows=5))
    assert values(open_images(source)) == [0, 1, 2, 3, 4]
    (copy,) = cache.glob("*.arrow")
    whole = copy.read_bytes()
    for damage in DAMAGE.values():
        copy.write_bytes(damage(whole))
        assert values(open_images(source)) == [0, 1, 2, 3, 4]
    assert copy.read_bytes() == whole


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "other dtype"])
def test_damaged_indexes_are_made_again(tmp_path, cache, monkeypatch, kind, damage):
    monkeypatch.setattr(folder, "INDEX_FROM", 2)
    if kind == "tar":
        source = webdataset(tmp_path / "a.tar", 0, 30, cls=lambda value: b"%d" % (value % 3))
    else:
        source = tmp_path / "photos"
        for value in range(30):
            draw(source / f"{value:02}.png", value)
    os.utime(source, (1e9, 1e9))
    sound = values(open_images(str(source)))
    (file,) = cache.glob("*.npz")
    whole = file.read_bytes()
    middle = len(whole) // 2
    broken = DAMAGE[damage](whole) if damage != "one bit" else whole[:middle] + b"~~~~" + whole[middle + 4 :]
    file.write_bytes(broken)
    images = open_images(str(source))
    assert values(images) == sound == list(range(30))
    assert images.labels is None if kind == "folder" else images.labels.tolist() == [value % 3 for value in range(30)]


def test_a_shard_replaced_in_its_own_time_and_size_is_indexed_again(tmp_path, cache):
    source = webdataset(tmp_path / "a.tar", 0, 3, cls=lambda value: b"1")
    os.utime(source, (1e9, 1e9))
    assert open_images(str(source)).labels.tolist() == [1, 1, 1]
    webdataset(source, 0, 3, cls=lambda value: b"2")
    os.utime(source, (1e9, 1e9))
    assert open_images(str(source)).labels.tolist() == [2, 2, 2]


def test_a_seal_is_of_content(tmp_path):
    file = tmp_path / "a.bin"
    assert not matches_seal(file)
    file.write_bytes(bytes(1000))
    assert not matches_seal(file)
    seal(file)
    assert matches_seal(file)
    (tmp_path / "a.bin.seal").write_text("{")
    assert not matches_seal(file)


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    code = (
        "import pathlib, sys, time; from patchcast.files import write_cache\n"
        "def hang(file):\n    file.write_bytes(bytes(9)); print('writing', flush=True); time.sleep(60)\n"
        "write_cache(pathlib.Path(sys.argv[1]) / 'a.bin', hang)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        assert process.stdout.readline() == "writing\n"

    def unfinished() -> int:
        return len([file for file in tmp_path.iterdir() if file.name.startswith(".a.")])

    def write_another() -> None:
        write_cache(tmp_path / "b.bin", lambda file: file.write_bytes(b"b"))

    running[0].send_signal(signal.SIGKILL)
    running[0].wait()
    write_another()
    assert unfinished() == 2, "one is still writing: nobody can tell whose they are"
    running[1].send_signal(signal.SIGKILL)
    running[1].wait()
    write_another()
    assert unfinished() == 0
    write_whole(tmp_path / ".hidden.bin", lambda file: file.write_bytes(b"c"))
    write_another()
    assert (tmp_path / ".hidden.bin").exists()


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "other dtype"])
def test_damaged_features_are_computed_again(tmp_path, damage):
    torch.manual_seed(0)
    backbone = ViT(timm.create_model("test_vit", img_size=32, patch_size=8))
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    sound = extract(backbone, batches, cache=tmp_path).x
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    assert torch.equal(extract(backbone, batches, cache=tmp_path).x, sound)
    assert torch.equal(safetensors.torch.load_file(file)["x"], sound)


@pytest.mark.slow
def test_imagegpt_trains_on_the_new_images(tmp_path, cache):
    """By the command line: the same names, other images, other weights."""
    tiny = ["--model", "imagegpt", "--model_args", '{"width": 32, "depth": 1, "heads": 2}', "--steps", "2"]
    photos = tmp_path / "photos"
    for seed, run in enumerate(("one", "two")):
        chance = np.random.default_rng(seed)
        for number in range(80):
            draw(photos / f"{number:03}.png", int(chance.integers(256)), size=(8, 8))
        given = ["--method", "imagegpt", "--codes", "16", "--batch_size", "4", "--out", str(tmp_path / run)]
        assert main(["pretrain", *given, *tiny, "--data", str(photos), "--workers", "0"]) == 0
    one, two = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two"))
    assert one != two
