"""Packed images: the pixels of the ordinary loader, decoded once; killed and damaged caches are finished and redone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.cli import main
from patchcast.data import Augment, TrainSet, open_images
from patchcast.data import packed as module
from patchcast.data.packed import pack_images
from patchcast.data.transforms import resize
from patchcast.training.log import curve


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEGs of different sizes in two classes."""
    random = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = (20 + 4 * number, 40 - 3 * number, 3)
        Image.fromarray(random.integers(256, size=size, dtype=np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


def test_batches_are_those_of_the_ordinary_loader(photos: Path, tmp_path: Path) -> None:
    images = open_images(str(photos))
    augment = Augment((16, 16), (0.3, 1.0), True, (0.5,) * 3, (0.2,) * 3)
    plain, packed = (TrainSet(one, augment, seed=3) for one in (images, pack_images(images, 64, folder=tmp_path)))
    for epoch in range(3):
        for index in range(len(images)):
            (one, label), (two, same) = plain[epoch, index], packed[epoch, index]
            assert torch.equal(one, two)
            assert label == same


def test_large_images_are_shrunk_to_their_shorter_side(photos: Path, tmp_path: Path) -> None:
    images = open_images(str(photos))
    packed = pack_images(images, 24, folder=tmp_path)
    for index in range(len(images)):
        image, small = images[index].image, packed[index][0]
        assert min(small.shape[1:]) == min(24, *image.shape[1:])
        assert torch.equal(small, resize(image, (small.shape[1], small.shape[2])))


def test_it_is_decoded_once_and_resumed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, decoded = open_images(str(photos)), list[int]()
    whole = pack_images(images, 64, folder=tmp_path / "whole")
    plain = module._packed

    def killed(images: object, number: int, side: int) -> object:
        if number == 5 and 5 not in decoded:
            decoded.append(number)
            raise KeyboardInterrupt
        decoded.append(number)
        return plain(images, number, side)

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(module, "_packed", killed)
    with pytest.raises(KeyboardInterrupt):
        pack_images(images, 64, folder=tmp_path / "killed")
    pack_images(images, 64, folder=tmp_path / "killed")
    assert decoded == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    again = pickle.loads(pickle.dumps(pack_images(images, 64, folder=tmp_path / "killed")))
    assert decoded == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    for index in range(len(images)):
        assert torch.equal(whole[index][0], again[index][0])


def test_damage_and_other_content_are_noticed(photos: Path, tmp_path: Path) -> None:
    images = open_images(str(photos))
    first = pack_images(images, 64, folder=tmp_path / "cache")
    expected = first[0][0].clone()
    content = bytearray(first.file.read_bytes())
    content[7] ^= 255
    first.file.write_bytes(content)
    assert torch.equal(pack_images(images, 64, folder=tmp_path / "cache")[0][0], expected)
    Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(photos / "class0" / "0.jpg")
    assert not pack_images(open_images(str(photos)), 64, folder=tmp_path / "cache")[0][0].any()


def test_what_cannot_be_packed_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 pixel; got 0"):
        pack_images(open_images(str(photos)), 0, folder=tmp_path)


@pytest.mark.usefixtures("few_digits", "_no_figures")
def test_a_run_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ["--model", "test_vit", "--model_args", '{"depth": 1, "embed_dim": 32, "num_heads": 2}', "--device", "cpu"]
    short = ["--data", "digits", "--steps", "2", "--batch_size", "8", "--log_every", "1", "--pictures", "false"]
    command = ["pretrain", "--method", "mae", *small, *short]
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    assert main([*command, "--out", str(tmp_path / "packed"), "--packed", "8"]) == 0
    plain, packed = (curve(tmp_path / name / "metrics.csv", "loss") for name in ("plain", "packed"))
    assert plain == packed
    assert len(list((tmp_path / "cache").rglob("packed-*.bin"))) == 2


def test_codes_are_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run"), "--packed", "8"]
    model = ["--model", "imagegpt", "--model_args", '{"depth": 1, "width": 32, "heads": 2}', "--codes", "8"]
    assert main(["pretrain", "--method", "imagegpt", *model, "--data", "digits", *out]) == 2
    assert not (tmp_path / "run").exists()
    assert "imagegpt trains on codes, which are cached already: leave out --packed" in capsys.readouterr().err
