"""Which folders and files are splits: by all their usual names, and refused where two readings are possible."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from patchcast.cli import main
from patchcast.data import open_images, open_source
from tests.data.test_sources import draw, values, write
from tests.data.test_tar import pack, png


def tree(root: Path, *folders: str) -> str:
    for number, folder in enumerate(folders):
        draw(root / folder / f"{number}.png", number)
    return str(root)


NAMES = [
    ("Train", "Test", "test"), ("train", "valid", "val"), ("training", "testing", "test"), ("TRAIN", "dev", "val"),
    ("train", "eval", "test"), ("train2017", "val2017", "val"), ("Training", "Validation", "validation"),
]  # fmt: skip


@pytest.mark.parametrize(("train", "other", "split"), NAMES)
def test_all_usual_names_are_splits_of_folders_parquet_and_tar(tmp_path, train, other, split):
    sources = [tree(tmp_path / "folder", f"{train}/cat", f"{train}/dog", f"{other}/cat")]
    for kind in ("named", "inside"):
        for name in (train, other):
            file = tmp_path / kind / (f"{name}-0.parquet" if kind == "named" else f"{name}/0.parquet")
            write(file, rows=2 if name == train else 1, start=0 if name == train else 2)
        sources.append(str(tmp_path / kind))
    for name, members in ((train, {"a.png": png(0), "b.png": png(1)}), (other, {"c.png": png(2)})):
        pack(tmp_path / "shards" / f"some-{name}-000.tar", members)
    sources.append(str(tmp_path / "shards"))
    inside = {f"./{train}/cat/0.png": png(0), f"./{train}/dog/1.png": png(1), f"./{other}/cat/2.png": png(2)}
    sources.append(str(pack(tmp_path / "one.tar", inside)))
    for source in sources:
        opened = open_images(source)
        assert opened.splits == ["train", split], source
        assert (values(opened), values(open_images(source, split=other))) == ([0, 1], [2])
        assert open_images(source, split=split.upper()).split == split
        assert open_source(source).held_out.images.split == split
    for source in (sources[0], sources[-1]):
        assert open_images(source, split=split).class_names == ["cat", "dog"]
        assert (open_images(source).labels.tolist(), open_images(source, split=split).labels.tolist()) == ([0, 1], [0])


def test_splits_inside_of_one_folder_are_found(tmp_path):
    source = tree(tmp_path, "CUB/images/Train/a", "CUB/images/Train/b", "CUB/images/Test/a")
    assert open_images(source).splits == ["train", "test"]
    assert open_images(source, split="test").labels.tolist() == [0]


def test_one_split_alone_is_train_with_its_classes(tmp_path):
    for name in ("train", "test"):
        images = open_images(tree(tmp_path / name, f"{name}/a", f"{name}/b"))
        assert (images.splits, images.class_names) == (["train"], ["a", "b"])


def test_held_out_splits_without_a_train_split_are_no_classes(tmp_path):
    source = tree(tmp_path, "test/a", "val/a")
    with pytest.raises(ValueError, match="has no split 'train': it has test, val"):
        open_images(source)
    assert values(open_images(source, split="val")) == [1]


AMBIGUOUS = [
    (["train/a", "val/a", "valid/a"], "'val' and 'valid', and both names mean the validation split: rename"),
    (["train/a", "Train/a"], "'Train' and 'train', and both names mean the training split"),
    (["train/a", "test/a", "eval/a"], "both names mean the test split"),
    (["cat", "dog", "test"], "a folder 'test' next to 'cat', 'dog', which has two readings: if 'test' is the test"),
    (["bus", "car", "train"], "a folder 'train' next to 'bus', 'car', which has two readings: .*; if it is a class"),
    ([".", "test"], "a folder 'test' next to images in no folder, which has two readings"),
    (["cat/train", "cat/test", "dog/train", "dog/test"], "'test' inside the folder 'cat': splits are the outer"),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "sentence"), AMBIGUOUS)
def test_a_tree_of_two_readings_is_refused(tmp_path, folders, sentence, capsys):
    source = tree(tmp_path, *folders)
    with pytest.raises(ValueError, match=sentence):
        open_images(source)
    members = {f"{folder}/{number}.png".removeprefix("./"): png(number) for number, folder in enumerate(folders)}
    with pytest.raises(ValueError, match=sentence.replace("'Train' and 'train'", "'train' and 'Train'")):
        open_images(str(pack(tmp_path / "one" / "one.tar", members)))
    assert main(["data", "check", source, "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "rename" in error or "make it" in error


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train-0", "val-0", "valid-0"], "both names mean the validation split"),
        (["train-test-0", "b"], "could be of the split 'train' or 'test'"),
    ],
)
def test_files_of_two_readings_are_refused(tmp_path, names, sentence):
    for name in names:
        write(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=sentence):
        open_images(str(tmp_path))


def test_a_word_of_all_names_tells_nothing(tmp_path):
    for number, name in enumerate(["test-suite-train-0", "test-suite-val-0"]):
        write(tmp_path / "test" / f"{name}.parquet", rows=1, start=number)
    assert open_images(str(tmp_path)).splits == ["train", "val"]
    assert values(open_images(str(tmp_path), split="val")) == [1]


def test_what_is_of_no_split_is_passed_over_and_named(tmp_path):
    source = tree(tmp_path / "folder", "train/a", "test/a", "extra/b", "extra/c", ".")
    with pytest.warns(UserWarning, match=r"^passed over images of .* of no split: 1 in no folder, 2 in 'extra'"):
        assert values(open_images(source)) == [0]
    for name in ("train-0", "test-0", "more"):
        write(tmp_path / "files" / f"{name}.parquet")
    with pytest.warns(UserWarning, match=r"^passed over .*more\.parquet: the name tells none of the splits"):
        assert len(open_images(str(tmp_path / "files"))) == 3
    classes = tree(tmp_path / "classes", "train/a", "train/b", "masks")
    with pytest.warns(UserWarning, match="1 in 'masks'"):
        assert open_images(classes).class_names == ["a", "b"]


# ---- links, and what is passed over ----------------------------------------------------------------------------------


def test_a_linked_split_is_there_too(tmp_path):
    tree(tmp_path, "train/a", "train/b")
    (tmp_path / "val").symlink_to("train", target_is_directory=True)
    images = open_images(str(tmp_path), split="val")
    assert (images.splits, values(images), images.labels.tolist()) == (["train", "val"], [0, 1], [0, 1])


def test_linked_class_folders_have_their_labels(tmp_path):
    tree(tmp_path / "store", "x", "y", "z")
    for split, folders in (("train", "xyz"), ("val", "xz")):
        (tmp_path / "root" / split).mkdir(parents=True)
        for folder in folders:
            (tmp_path / "root" / split / f"class {folder}").symlink_to(tmp_path / "store" / folder)
    train, val = (open_images(str(tmp_path / "root"), split=split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["class x", "class y", "class z"]
    assert (train.labels.tolist(), val.labels.tolist(), values(val)) == ([0, 1, 2], [0, 2], [0, 2])


def test_folders_that_are_all_linked_into_each_other_end(tmp_path):
    tree(tmp_path, *"abcdef")
    for folder in "abcdef":
        for other in "abcdef":
            (tmp_path / folder / f"to_{other}").symlink_to(tmp_path / other)
    images = open_images(str(tmp_path))
    assert images.class_names == list("abcdef")
    assert len(images) < 6**5


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = tree(tmp_path, "a", "b", "c")
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read all
    with pytest.warns(UserWarning, match=r"^passed over a folder that cannot be listed: .*/b: Permission denied$"):
        assert values(open_images(source)) == [0, 2]
    with pytest.raises(ValueError, match=r"a folder cannot be listed: .*/b: Permission denied"):
        open_images(str(tmp_path / "b"))


def test_files_that_are_no_images_are_counted(tmp_path):
    tree(tmp_path, ".")
    for name in ("a.heic.txt", "b.txt", "c.mp4", "d.svg", "e.ai"):
        (tmp_path / name).write_text("words")
    with pytest.warns(UserWarning, match=r"^passed over files that are no images by their names: 2 \.txt, 1 .*others"):
        open_images(str(tmp_path))


COMPOUND = [
    (["seg_train/seg_train/a", "seg_test/seg_test/a", "seg_pred/x"], ["train", "test"], "seg_pred"),
    (["train_images/a", "train_images/b", "val_images/a"], ["train", "val"], None),
    (["TrainImages/a", "TrainImages/b", "TestImages/a", "TrainMasks", "TestMasks"], ["train", "test"], "TrainMasks"),
    (["train-set/a", "train-set/b", "test-set/a"], ["train", "test"], None),
    (["trainset/a", "trainset/b", "testset/a"], ["train", "test"], None),
    (["train /a", "train /b", "test /a"], ["train", "test"], None),
    (["train/train/a", "train/train/b", "train/val/a"], ["train", "val"], None),
    (["data/train/a", "data/train/b", "data/test/a", "."], ["train", "test"], "1 in no folder"),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "splits", "passed_over"), COMPOUND)
def test_one_word_of_a_name_tells_a_split_where_names_differ_in_it_only(tmp_path, folders, splits, passed_over):
    source = tree(tmp_path, *folders)
    with pytest.warns(UserWarning, match=f"passed over .*{passed_over}") if passed_over else nullcontext():
        opened = open_images(source)
    with pytest.warns(UserWarning, match="passed over") if passed_over else nullcontext():
        other = open_images(source, split=splits[1])
    assert opened.splits == splits
    if not folders[0].startswith("seg"):  # whose classes are one folder further in
        assert (opened.class_names, opened.labels.tolist(), other.labels.tolist()) == (["a", "b"], [0, 1], [0])


def test_words_of_classes_are_no_splits(tmp_path):
    source = tree(tmp_path, "bullet_train", "test_tube", "val_d_isere")
    assert (open_images(source).splits, open_images(source).class_names[0]) == (["train"], "bullet_train")
    with pytest.raises(ValueError, match="training images in 'trainA' and 'trainB', which has two readings"):
        open_images(tree(tmp_path / "cycle", "trainA", "trainB", "testA", "testB"))


def test_a_folder_around_classes_is_no_class(tmp_path):
    source = tree(tmp_path, "archive/photos/cat", "archive/photos/dog")
    images = open_images(source)
    assert (images.class_names, images.labels.tolist(), values(images)) == (["cat", "dog"], [0, 1], [0, 1])


def test_a_file_of_no_split_next_to_training_files_is_named(tmp_path):
    write(tmp_path / "train.parquet", rows=2)
    write(tmp_path / "holdout.parquet", rows=1, start=2)
    with pytest.warns(UserWarning, match=r"holdout.parquet tells no split: it is trained on too, next to .*train.parq"):
        assert len(open_images(str(tmp_path))) == 3
