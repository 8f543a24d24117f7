"""Labels are names: whatever their type, they are numbered once, alike in all splits; columns are found or named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchcast.cli import main
from patchcast.data import open_images, open_source
from tests.data.test_sources import png, values, write
from tests.data.test_tar import pack, webdataset

CASES = {
    "sparse ids": ([2_000_000_000, 1_000_000_000, None], [1, 0, -1], ["1000000000", "2000000000"]),
    "negative": ([-5, 7, -1], [0, 2, 1], ["-5", "-1", "7"]),
    "own numbers": ([2, None, 0], [2, -1, 0], None),
    "none is -1": ([1, -1, 0], [1, -1, 0], None),
    "bool": ([True, None, False], [1, -1, 0], ["False", "True"]),
    "whole floats": ([2.0, float("nan"), 0.0], [2, -1, 0], None),
    "sparse floats": ([2e9, None, 1e9], [1, -1, 0], ["1000000000", "2000000000"]),
    "fractions": ([0.5, 1.5, 0.5, 1.5], [0, 1, 0, 1], ["0.5", "1.5"]),
    "text": (["bee", None, "ant"], [1, -1, 0], ["ant", "bee"]),
    "zero-padded": (["010", "002", None], [1, 0, -1], ["002", "010"]),
    "categorical": (pa.array(["b", None, "a"]).dictionary_encode(), [1, -1, 0], ["a", "b"]),
    "categorical numbers": (pa.array([3, None, 1]).dictionary_encode(), [3, -1, 1], None),
    "large text": (pa.array(["b", None, "a"], pa.large_string()), [1, -1, 0], ["a", "b"]),
    "int8": (pa.array([3, None, 1], pa.int8()), [3, -1, 1], None),
    "infinite": ([float("inf"), 1.0, 2.0], [-1, 1, 2], None),
    "blank": (["", "a", "b", "  "], [-1, 0, 1, -1], ["a", "b"]),
    "lists of one": ([[3], [], None, [1]], [3, -1, -1, 1], None),
    "lists of one name": (pa.array([["b"], ["a"]], pa.list_(pa.string(), 1)), [1, 0], ["a", "b"]),
    "uint64": (pa.array([2**63 + 1, None, 5], pa.uint64()), [1, -1, 0], ["5", str(2**63 + 1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_type_of_label_is_numbered(tmp_path, case):
    given, numbers, names = CASES[case]
    images = open_images(str(write(tmp_path / "some.parquet", rows=len(given), label=given)))
    assert (images.labels.tolist(), images.class_names) == (numbers, names)
    assert [label for _, label in images] == numbers


def test_measurements_are_no_classes(tmp_path):
    assert open_images(str(write(tmp_path / "floats.parquet", label=[0.5, 1.5, 2.5]))).labels is None
    assert open_images(str(write(tmp_path / "none.parquet", label=pa.nulls(3)))).labels is None


NO_LABELS = {
    "lists of several": ([[1, 2], [1], [2]], "the column 'label' holds lists of several labels"),
    "structs": ([{"id": 1}] * 3, "the column 'label' holds struct<id: int64>, and labels are numbers"),
    "bytes": ([b"\x89PNG"] * 3, "the column 'label' holds binary"),
    "dates": (pa.array([1, 2, 1], pa.date32()), r"the column 'label' holds date32\[day\]"),
}


@pytest.mark.parametrize("case", NO_LABELS)
def test_a_probe_says_why_there_are_no_labels(tmp_path, case):
    given, reason = NO_LABELS[case]
    source = str(write(tmp_path / "some.parquet", label=given))
    assert open_images(source).labels is None
    with pytest.raises(ValueError, match=f"has no labels \\({reason}.*, which a probe needs"):
        open_source(source).labeled()
    with pytest.raises(ValueError, match=r"the column 'label' of .* holds"):
        open_images(source, label_column="label")


def test_a_probe_names_the_images_next_to_class_folders(tmp_path, capsys):
    for name in ("a/0.png", "b/1.png", "cover.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    with pytest.raises(
        ValueError, match=r"has no labels \(1 image lies next to the folders \('cover.png'\), which are"
    ):
        open_source(str(tmp_path)).labeled()
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "No labels: 1 image lies next to the folders ('cover.png')" in capsys.readouterr().out


@pytest.mark.parametrize("unlabeled", ["train", "test"])
def test_a_split_without_the_column_has_no_labels(tmp_path, unlabeled):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", **({} if split == unlabeled else {"label": [1, 0, 1]}))
    train, test = (open_images(str(tmp_path), split=split) for split in ("train", "test"))
    without, labeled = (train, test) if unlabeled == "train" else (test, train)
    assert not (without.labels >= 0).any()
    assert labeled.labels.tolist() == [1, 0, 1]


def test_splits_have_one_numbering_whatever_the_types_of_their_files(tmp_path):
    write(tmp_path / "a" / "train-00000-of-00002.parquet", label=pa.array([0, 1, 2], pa.int32()))
    write(tmp_path / "a" / "train-00001-of-00002.parquet", label=pa.array([2, 3, None], pa.int64()))
    write(tmp_path / "a" / "test.parquet", label=[3.0, 0.0, None])
    train, test = (open_images(str(tmp_path / "a"), split=split) for split in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 2, 3, -1], [3, 0, -1])
    write(tmp_path / "b" / "train.parquet", label=["x", "z", "y"])
    write(tmp_path / "b" / "test.parquet", label=pa.array(["z", "x", "w"]).dictionary_encode())
    train, test = (open_images(str(tmp_path / "b"), split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["w", "x", "y", "z"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 3, 2], [3, 1, 0])


def test_names_of_the_hugging_face_schema_stay(tmp_path):
    features = {"info": {"features": {"fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": [png(0), png(1)], "fine_label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    images = open_images(str(tmp_path / "a.parquet"))
    assert (images.class_names, images.labels.tolist()) == (["cat", "dog"], [1, 0])


@pytest.mark.parametrize("column", ["image", "img", "image_bytes", "jpg", "JPEG", "picture", "whatever"])
@pytest.mark.parametrize("label", ["label", "labels", "class", "fine_label", "Target", "cls"])
def test_usual_names_of_columns_are_known(tmp_path, column, label):
    images = open_images(str(write(tmp_path / "a.parquet", column, is_struct=False, **{label: [1, 0, 1]})))
    assert (values(images), images.labels.tolist()) == ([0, 1, 2], [1, 0, 1])


def test_columns_are_named_where_they_are_not_known(tmp_path):
    second = [png(7)] * 3
    source = str(
        write(tmp_path / "a.parquet", "left", is_struct=False, right=second, breed=["b", "a", "b"], age=[1, 2, 3])
    )
    with pytest.raises(
        ValueError, match="several columns that may hold images: left, right; name one with --image_col"
    ):
        open_images(source)
    assert values(open_images(source, image_column="right")) == [7, 7, 7]
    images = open_images(source, image_column="left", label_column="breed")
    assert (values(images), images.class_names, images.labels.tolist()) == ([0, 1, 2], ["a", "b"], [1, 0, 1])
    assert open_source(source, image_column="left", label_column="age").train.labels.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"has no column 'breeds': its columns are id, left, right, breed, age"):
        open_images(source, image_column="left", label_column="breeds")
    with pytest.raises(ValueError, match=r"the column 'age' of .* holds no encoded images"):
        open_images(source, image_column="age")
    with pytest.raises(ValueError, match=r"the column 'right' of .* holds no labels"):
        open_images(source, image_column="left", label_column="right")
    with pytest.raises(ValueError, match="digits has no columns, but the column 'y' is asked for"):
        open_images("digits", label_column="y")


def test_several_columns_of_labels_are_refused_and_the_finer_is_taken(tmp_path):
    source = str(write(tmp_path / "a.parquet", target=[0, 1, 0], category=["a", "b", "a"]))
    with pytest.raises(
        ValueError, match="several columns that may hold labels: target, category; name one with --label"
    ):
        open_images(source)
    assert open_images(source, label_column="category").class_names == ["a", "b"]
    both = str(write(tmp_path / "b.parquet", fine_label=[5, 6, 7], coarse_label=[0, 0, 1]))
    assert open_images(both).labels.tolist() == [5, 6, 7]
    assert open_images(both, label_column="coarse_label").labels.tolist() == [0, 0, 1]
    coarse = str(write(tmp_path / "c.parquet", coarse_label=[0, 0, 1]))
    assert open_images(coarse).labels.tolist() == [0, 0, 1]


def test_files_of_one_source_may_write_images_in_two_ways(tmp_path):
    write(tmp_path / "0.parquet", is_struct=True)
    write(tmp_path / "1.parquet", is_struct=False, start=3)
    assert values(open_images(str(tmp_path))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("written", "numbers", "names"),
    [
        (["cat", "ant", "cat"], [1, 0, 1], ["ant", "cat"]),
        (["007", "001", "007"], [1, 0, 1], ["001", "007"]),
        (["2000000000", "5", ""], [1, 0, -1], ["5", "2000000000"]),
        (["true", "false", "true"], [1, 0, 1], ["False", "True"]),
        (["1.0", "0.0", "null"], [1, 0, -1], None),
    ],
)
def test_labels_of_tar_samples_are_names_too(tmp_path, written, numbers, names):
    images = open_images(str(webdataset(tmp_path / "a.tar", 0, 3, cls=lambda value: written[value].encode())))
    assert (images.labels.tolist(), images.class_names) == (numbers, names)


def test_a_field_of_json_is_a_label_by_its_usual_name_or_when_named(tmp_path):
    def note(value: int) -> bytes:
        return json.dumps({"caption": "a", "class": "xyz"[value], "mood": value > 0}).encode()

    source = str(webdataset(tmp_path / "a.tar", 0, 3, json=note))
    assert open_images(source).class_names == ["x", "y", "z"]
    assert open_images(source, label_column="mood").labels.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"no sample of .* has a label called 'moods'"):
        open_images(source, label_column="moods")
    two = {f"{n}.{kind}": png(n + first) for n in range(3) for kind, first in (("left.png", 0), ("right.png", 50))}
    assert values(open_images(str(pack(tmp_path / "b.tar", two)), image_column="right.png")) == [50, 51, 52]
    with pytest.raises(ValueError, match=r"has no images called 'top\.png': it has left\.png, right\.png"):
        open_images(str(tmp_path / "b.tar"), image_column="top.png")


def test_datasets_have_the_same_rules(tmp_path):
    datasets = pytest.importorskip("datasets")
    content = [{"bytes": png(value), "path": None} for value in range(3)]
    kinds = {"photo": datasets.Image(), "labels": datasets.Value("bool"), "y": datasets.Value("string")}
    made = datasets.Dataset.from_dict(
        {"photo": content, "labels": [True, False, None], "y": ["b", "a", "b"]}, datasets.Features(kinds)
    )
    made.save_to_disk(tmp_path / "made")
    source = str(tmp_path / "made")
    with pytest.raises(ValueError, match="several columns that may hold labels: labels, y"):
        open_images(source)
    images = open_images(source, label_column="labels")
    assert (images.labels.tolist(), images.class_names) == ([1, 0, -1], ["False", "True"])
    assert open_images(source, label_column="y").labels.tolist() == [1, 0, 1]
    assert np.array_equal(values(images), [0, 1, 2])
    assert Path(source).exists()


@pytest.mark.usefixtures("_no_figures")
def test_the_command_line_names_columns(tmp_path, capsys):
    """From pretraining to the probe of the run's own data, of another source, and `data check`."""
    for split, start in (("train", 0), ("test", 40)):
        table = {"left": [png(9)] * 40, "breed": ["a", "b"] * 20, "age": list(range(40))}
        write(tmp_path / "dogs" / f"{split}.parquet", "right", rows=40, start=start, is_struct=False, **table)
    data, run = str(tmp_path / "dogs"), str(tmp_path / "run")
    tiny = ["--model", "test_vit", "--steps", "1", "--batch_size", "4", "--workers", "0", "--image_size", "32", "32"]
    pretrain = ["pretrain", "--method", "simmim", *tiny, "--data", data, "--out", run]
    assert main(pretrain) == 2
    assert "may hold images: right, left; name one with --image_column" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    columns = ["--image_column", "right", "--label_column", "breed"]
    assert main([*pretrain, *columns]) == 0
    few = ["--draws", "2", "--per_class", "2"]
    assert main(["probe", run, *few]) == 0
    assert main(["probe", run, "--data", data, *few]) == 2
    assert main(["probe", run, "--data", data, *few, *columns]) == 0
    capsys.readouterr()
    assert main(["data", "check", data, *columns, "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert " a " in out
    assert "80 images read" in out
    assert main(["embed", run, "--data", data, *columns, "--out", str(tmp_path / "f.parquet")]) == 0


def test_a_split_of_nulls_does_not_hide_the_labels_of_another(tmp_path):
    write(tmp_path / "test.parquet", label=pa.nulls(3))
    write(tmp_path / "train.parquet", label=[1, 0, 1])
    write(tmp_path / "val.parquet", label=["0", "1", None])
    splits = {split: open_images(str(tmp_path), split=split).labels.tolist() for split in ("train", "val", "test")}
    assert splits == {"train": [1, 0, 1], "val": [0, 1, -1], "test": [-1, -1, -1]}


def test_a_probe_counts_test_images_of_classes_that_it_cannot_know(tmp_path):
    write(tmp_path / "train.parquet", rows=4, label=[0, 1, 0, 1])
    write(tmp_path / "test.parquet", rows=4, start=4, label=[0, 2, 3, 1])
    assert "; 2 of the 4 test images are of classes without" in open_source(str(tmp_path)).labeled().phrase
    with pytest.raises(ValueError, match=r"fitted on split train of .*; judge on another of test$"):
        open_source(str(tmp_path)).labeled(split="train")
