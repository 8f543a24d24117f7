"""What each kind of source is taken for: its images, labels, classes and splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from patchcast.data import folder, open_images, parquet
from tests.data.test_decode import encode


def draw(path: Path, value: int = 100, size: tuple[int, int] = (6, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (value,) * len(mode) if mode != "L" else value).save(path)
    return path


def values(images) -> list[int]:
    return [int(example.image[0, 0, 0]) for example in images]


# ---- digits ----------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_own():
    bunch = load_digits()
    splits = {split: open_images("digits", split=split) for split in ("train", "test")}
    assert {split: len(images) for split, images in splits.items()} == {"train": 1437, "test": 360}
    rows = np.concatenate([images.store.rows for images in splits.values()])
    assert sorted(rows) == list(range(1797))
    for images in splits.values():
        for index in range(0, len(images), 37):
            row = images.store.rows[index]
            expected = np.rint(bunch.images[row] / 16 * 255)
            assert np.array_equal(images[index].image[0].numpy(), expected)
            assert images[index].label == images.labels[index] == bunch.target[row]
    shares = np.bincount(splits["test"].labels) / np.bincount(bunch.target)
    assert np.abs(shares - 0.2).max() < 0.01


# ---- the data sets beside the repository -----------------------------------------------------------------------------


def test_cifar10(shared_data):
    test = open_images(str(shared_data / "cifar10"), split="test")
    assert (len(test), test.channels, test.typical_size, test.name) == (10_000, 3, (32, 32), "cifar10")
    assert test.splits == ["train", "test"]
    assert " ".join(test.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the order of torchvision's CIFAR10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # The first pixels of torchvision's first test image, a cat.
    assert test[0].image.shape == (3, 32, 32)
    assert test[0].image[:, 0, 0].tolist() == [158, 112, 49]
    assert test[9999].label == test.labels[9999] == 7
    train = open_images(str(shared_data / "cifar10" / "train-00000-of-00001.parquet"))
    assert (len(train), train.splits) == (50_000, ["train"])
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert train[0].image[:, 0, 0].tolist() == [59, 62, 63]


def test_eurosat(shared_data):
    train, test = (open_images(str(shared_data / "eurosat"), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5000, 1000)
    assert train.class_names == test.class_names
    assert len(train.class_names) == 10
    for images in (train, test):
        assert (images.channels, images.typical_size, images.unreadable) == (3, (64, 64), [])
        assert images[7].image.shape == (3, 64, 64)


def test_trashnet(shared_data):
    images = open_images(str(shared_data / "trashnet"))
    assert (len(images), images.channels, images.typical_size, images.splits) == (600, 3, (384, 512), ["train"])
    assert " ".join(images.class_names) == "cardboard glass metal paper plastic trash"
    assert images[599].image.shape == (3, 384, 512)
    with pytest.raises(ValueError, match=r"trashnet has no split 'test': it has train$"):
        open_images(str(shared_data / "trashnet"), split="test")


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_flat_folder_is_unlabeled_and_sorted_by_name(tmp_path):
    for name, value in (("b.png", 2), ("a.PNG", 1), ("c.bmp", 3)):
        draw(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("left by a file manager")
    images = open_images(str(tmp_path))
    assert values(images) == [1, 2, 3]
    assert images.labels is None
    assert images.class_names is None
    assert {example.label for example in images} == {-1}
    assert (images.typical_size, images.unreadable, images.name) == ((6, 8), [], tmp_path.name)


def test_class_folders_give_labels_however_deep_the_image_lies(tmp_path):
    draw(tmp_path / "dog" / "1.png", 1)
    draw(tmp_path / "cat" / "2020" / "may" / "2.png", 2)
    draw(tmp_path / "cat" / "3.png", 3)
    (tmp_path / "empty").mkdir()
    images = open_images(str(tmp_path))
    assert images.class_names == ["cat", "dog"]
    assert [(int(image[0, 0, 0]), label) for image, label in images] == [(2, 0), (3, 0), (1, 1)]
    assert images.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("files", [["a.png", "x/b.png", "y/c.png"], ["x/a.png", "x/y/b.png", "x/z/c.png"]])
def test_nested_folders_that_are_no_classes_are_unlabeled(tmp_path, files):
    for file in files:
        draw(tmp_path / file)
    images = open_images(str(tmp_path))
    assert len(images) == 3
    assert images.labels is None


@pytest.mark.parametrize("other", ["test", "val", "validation"])
def test_split_folders_share_one_numbering_of_classes(tmp_path, other):
    draw(tmp_path / "train" / "ant" / "1.png", 1)
    draw(tmp_path / "train" / "bee" / "2.png", 2)
    draw(tmp_path / other / "bee" / "3.png", 3)
    train, held_out = open_images(str(tmp_path)), open_images(str(tmp_path), split=other)
    assert train.splits == held_out.splits == ["train", other]
    assert (values(train), values(held_out)) == ([1, 2], [3])
    assert held_out.class_names == ["ant", "bee"]
    assert held_out.labels.tolist() == [1]
    near = r"; did you mean train\?"
    with pytest.raises(ValueError, match=rf"has no split 'trian': it has train, {other}{near}$"):
        open_images(str(tmp_path), split="trian")


def test_links_are_followed_and_loops_end(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    draw(elsewhere / "3.png", 3)
    root = tmp_path / "root"
    draw(root / "a" / "1.png", 1)
    draw(root / "b" / "2.png", 2)
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "a" / "itself").symlink_to(root / "a" / "itself")
    (root / "b" / "there").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(root / "b", target_is_directory=True)
    assert values(open_images(str(root))) == [1, 2, 3]


def test_dangling_link_is_unreadable_and_not_fatal(tmp_path):
    draw(tmp_path / "1.png", 1)
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match=r"skipped .*2\.png: No such file or directory"):
        images = open_images(str(tmp_path))
    assert values(images) == [1]


def test_a_large_folder_is_listed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "INDEX_FROM", 3)
    root = tmp_path / "root"
    for value, name in enumerate(["x/a.png", "x/deep/b.png", "y/c é.png"]):
        draw(root / name, value)
    for each in (root, root / "x", root / "x" / "deep", root / "y"):
        os.utime(each, (1e9, 1e9))
    walks = []
    walk = folder._walk
    monkeypatch.setattr(folder, "_walk", lambda root: walks.append(root) or walk(root))
    first, second = open_images(str(root)), open_images(str(root))
    assert len(walks) == 1
    assert [second.store.path(place) for place in range(3)] == [first.store.path(place) for place in range(3)]
    assert values(second) == [0, 1, 2]
    assert second.labels.tolist() == [0, 0, 1]

    draw(root / "x" / "deep" / "d.png", 7)  # changes only the time of the innermost folder
    assert values(open_images(str(root))) == [0, 1, 7, 2]
    open_images(str(root))
    assert len(walks) == 3, "a folder that changed a moment ago may still be changing: its list is not kept"

    os.utime(root / "x" / "deep", (1e9 + 5, 1e9 + 5))
    open_images(str(root))
    open_images(str(root))
    assert len(walks) == 4
    (kept,) = (tmp_path / "cache" / "patchcast").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert values(open_images(str(root))) == [0, 1, 7, 2], "a broken list is made again"
    (root / "y" / "c é.png").unlink()
    (root / "y").rmdir()
    assert len(open_images(str(root))) == 3


def test_small_folders_leave_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw(tmp_path / "root" / "a.png")
    os.utime(tmp_path / "root", (1e9, 1e9))
    open_images(str(tmp_path / "root"))
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"no images under .*: looked for \.jpg .*; found nothing$"):
        open_images(str(tmp_path))
    for name in ("a.txt", "b.txt", "c.txt", "d.csv", "README"):
        (tmp_path / name).write_text("words")
    with pytest.raises(ValueError, match=r"found 3 \.txt, 1 without extension, 1 \.csv$"):
        open_images(str(tmp_path))


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^dgits is not there: a source is 'digits', a folder of images, parquet"):
        open_images("dgits")
    photo = draw(tmp_path / "one.png")
    with pytest.raises(ValueError, match="is no folder, parquet or tar file"):
        open_images(str(photo))


# ---- parquet ---------------------------------------------------------------------------------------------------------


def png(value: int) -> bytes:
    return encode(Image.new("L", (4, 3), value)).getvalue()


def write(path: Path, column: str = "image", rows: int = 3, start: int = 0, is_struct: bool = True, **others) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [png(start + row) for row in range(rows)]
    images = [{"bytes": file, "path": None} for file in files] if is_struct else files
    pq.write_table(pa.table({"id": list(range(rows)), column: images, **others}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("is_struct", [True, False])
def test_parquet_with_and_without_struct(tmp_path, column, is_struct):
    images = open_images(str(write(tmp_path / "some.parquet", column, is_struct=is_struct)))
    assert values(images) == [0, 1, 2]
    assert (images.labels, images.class_names, images.channels, images.typical_size) == (None, None, 1, (3, 4))


def test_parquet_labels_as_numbers_and_as_text(tmp_path):
    numbers = open_images(str(write(tmp_path / "numbers.parquet", label=[2, None, 0])))
    assert (numbers.labels.tolist(), numbers.class_names) == ([2, -1, 0], None)
    write(tmp_path / "text" / "train.parquet", label=["bee", "ant", None])
    write(tmp_path / "text" / "test.parquet", label=["cow", "ant", "bee"])
    train, test = (open_images(str(tmp_path / "text"), split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["ant", "bee", "cow"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0, -1], [2, 0, 1])
    assert train[0].label == 1
    assert open_images(str(write(tmp_path / "floats.parquet", label=[0.5, 1.5, 2.5]))).labels is None


def test_splits_of_a_folder_of_parquet_files(tmp_path):
    write(tmp_path / "data" / "train-00001-of-00002.parquet", start=10)
    write(tmp_path / "data" / "train-00000-of-00002.parquet", start=0)
    write(tmp_path / "data" / "unsupervised-00000-of-00001.parquet", start=20)
    write(tmp_path / "data" / "test-100.parquet", start=30)
    write(tmp_path / "validation" / "0000.parquet", start=40)
    found = {}
    for split in ("train", "test", "unsupervised", "validation"):
        images = open_images(str(tmp_path), split=split)
        assert images.splits == ["train", "test", "validation", "unsupervised"]
        found[split] = values(images)
    assert found == {
        "train": [0, 1, 2, 10, 11, 12],
        "test": [30, 31, 32],
        "unsupervised": [20, 21, 22],
        "validation": [40, 41, 42],
    }
    assert open_images(str(tmp_path)).store.path(4).endswith("train-00001-of-00002.parquet, row 1")


def test_null_rows_and_nulls_within_the_struct_are_skipped(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(1), "path": None}, None, {"bytes": None, "path": "lost.png"}, {"bytes": png(4), "path": None}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "holes.parquet")
    with pytest.warns(UserWarning, match="no bytes in this row"):
        images = open_images(str(tmp_path / "holes.parquet"))
    assert values(images) == [1, 4]
    assert [bad.index for bad in images.unreadable] == [1, 2]


def test_parquet_errors_name_the_columns(tmp_path):
    table = tmp_path / "words.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), table)
    with pytest.raises(ValueError, match=r"no image column in .*words\.parquet: .*its columns are text, label$"):
        open_images(str(table))
    for content in (b"", b"PAR1 but not really PAR1", b"words"):
        table.write_bytes(content)
        with pytest.raises(ValueError, match=r"words\.parquet cannot be read as parquet: [^\n]+$"):
            open_images(str(table))


def test_a_large_source_is_mapped_from_disk_with_the_same_images(tmp_path, monkeypatch):
    source = str(write(tmp_path / "some.parquet", rows=5, label=[4, 3, 2, 1, 0]))
    in_memory = open_images(source)
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert values(in_memory) == [0, 1, 2, 3, 4]
    assert not list(cache.rglob("*.arrow"))
    monkeypatch.setattr(parquet, "IN_MEMORY_BYTES", 0)
    mapped = open_images(source)
    assert values(mapped) == values(in_memory)
    (copy,) = (cache / "patchcast").glob("*.arrow")
    made = copy.stat().st_mtime_ns
    assert values(open_images(source)) == values(in_memory)
    assert copy.stat().st_mtime_ns == made  # and not written again
    os.utime(source, ns=(1, 1))
    assert values(open_images(source)) == values(in_memory)
    assert len(list((cache / "patchcast").glob("*.arrow"))) == 2


def test_images_win_over_a_table_that_describes_them(tmp_path):
    draw(tmp_path / "a.png", 1)
    pq.write_table(pa.table({"file_name": ["a.png"]}), tmp_path / "metadata.parquet")
    assert values(open_images(str(tmp_path))) == [1]
