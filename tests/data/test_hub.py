"""Hugging Face datasets: saved to disk and by name, without decoding through their library."""

from __future__ import annotations

import builtins
import pickle

import pytest
from PIL import Image

from patchcast.data import open_images
from tests.data.test_decode import encode
from tests.data.test_sources import draw, values, write

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def rows(first: int, count: int, **others):
    images = [{"bytes": encode(Image.new("L", (8, 6), first + row)).getvalue(), "path": None} for row in range(count)]
    return {"image": images, **others}


def labeled(first: int, labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    return datasets.Dataset.from_dict(rows(first, len(labels), label=labels), features=features)


def test_saved_to_disk_with_splits(tmp_path):
    both = datasets.DatasetDict(train=labeled(0, [1, 0, 1]), test=labeled(50, [0]))
    both.save_to_disk(str(tmp_path / "saved"))
    train, test = (open_images(str(tmp_path / "saved"), split=split) for split in ("train", "test"))
    assert (values(train), values(test), train.splits) == ([0, 1, 2], [50], ["train", "test"])
    assert (train.class_names, train.labels.tolist(), train[2].label) == (["cat", "dog"], [1, 0, 1], 1)
    assert (train.channels, train.typical_size, train.name) == (1, (6, 8), "saved")
    assert train.store.path(1).endswith("saved train, row 1")
    assert values(pickle.loads(pickle.dumps(train))) == [0, 1, 2]


def test_saved_without_splits_and_after_a_shuffle(tmp_path):
    shuffled = labeled(0, [1, 0, 1, 0, 0]).select([4, 2, 0])
    shuffled.save_to_disk(str(tmp_path / "one"))
    images = open_images(str(tmp_path / "one"))
    assert (values(images), images.labels.tolist(), images.splits) == ([4, 2, 0], [0, 1, 1], ["train"])


def test_by_name(tmp_path):
    """A folder is a name too, and takes the same way through the library as one on the hub."""
    write(tmp_path / "mine" / "train.parquet", label=["bee", "ant", "bee"])
    write(tmp_path / "mine" / "test.parquet", start=9, label=["ant", "bee", "cow"])
    train, test = (open_images(f"hf:{tmp_path / 'mine'}", split=split) for split in ("train", "test"))
    assert (values(train), values(test)) == ([0, 1, 2], [9, 10, 11])
    assert (test.class_names, test.labels.tolist()) == (["ant", "bee", "cow"], [0, 1, 2])
    assert open_images(f"hf:{tmp_path / 'mine'}:default").splits == ["train", "test"]
    with pytest.raises(ValueError, match=r"^hf:.*mine:other cannot be fetched: BuilderConfig 'other' not found[^\n]*$"):
        open_images(f"hf:{tmp_path / 'mine'}:other")


def test_images_by_path_other_columns_and_holes(tmp_path):
    features = datasets.Features(
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "label": datasets.Value("float32")}
    )
    photos = [{"bytes": None, "path": str(draw(tmp_path / "3.png", 3))}, None]
    dataset = datasets.Dataset.from_dict({"photo": photos, "kind": [1, 0], "label": [0.5] * 2}, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    with pytest.warns(UserWarning, match="no bytes in this row"):
        images = open_images(str(tmp_path / "saved"))
    assert (values(images), images.labels.tolist(), images.class_names) == ([3], [1], ["a", "b"])


def test_what_cannot_be_had_is_said_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^hf:.*nowhere cannot be fetched: [^\n]+$"):
        open_images(f"hf:{tmp_path / 'nowhere'}")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "words"))
    with pytest.raises(ValueError, match=r"no image column in .*words: .*; its columns are text$"):
        open_images(str(tmp_path / "words"))
    labeled(0, [1]).save_to_disk(str(tmp_path / "broken"))
    arrow = next((tmp_path / "broken").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"broken cannot be read by datasets: [^\n]+$"):
        open_images(str(tmp_path / "broken"))

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs Hugging Face's datasets: pip install 'patchcast\[data\]'$"):
        open_images("hf:cifar10")
