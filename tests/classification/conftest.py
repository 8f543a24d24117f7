"""Folders of photographs and one classifier of them, which the tests of this folder share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.cli import main
from patchcast.data import open_images


@dataclass(frozen=True)
class Photos:
    """Class folders of colored squares, new ones without a class, and what both are."""

    labeled: Path
    new: Path
    names: tuple[str, ...] = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Three classes that differ in color: 12 images each to train on, 4 to test, and 2 new ones of each."""
    root = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)

    def write(file: Path, channel: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 80, (16, 16, 3))
        pixels[..., channel] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(file)

    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        for split, count in (("train", 12), ("test", 4)):
            for number in range(count):
                write(root / "labeled" / split / name / f"{number}.png", channel)
        for number in range(2):
            write(root / "new" / f"{name}-{number}.png", channel)
    return Photos(root / "labeled", root / "new")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Photos) -> Path:
    """A short pretraining run on the same photographs."""
    out = tmp_path_factory.mktemp("runs") / "first"
    words = [
        *("pretrain", "--method", "mae", "--model", "test_vit", "--data", str(photos.labeled), "--out", str(out)),
        *("--image_size", "16", "--patch_size", "4", "--steps", "2", "--batch_size", "8", "--no_pictures"),
        *("--workers", "0", "--precision", "fp32", "--model_args.depth", "2"),
    ]
    assert main(words) == 0
    return out


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, photos: Photos, run: Path) -> Path:
    """A classifier of the photographs, all weights trained."""
    out = tmp_path_factory.mktemp("models") / "x"
    words = ["finetune", str(run), "--data", str(photos.labeled), "--out", str(out), "--no_freeze", "--epochs", "8"]
    assert main([*words, "--batch_size", "8", "--augment", "light", "--smoothing", "0"]) == 0
    return out


@pytest.fixture
def pixels(photos: Photos) -> torch.Tensor:
    """The test images as they are read."""
    images = open_images(str(photos.labeled), split="test")
    return torch.stack([images[place].image for place in range(len(images))])
