"""`Source`: one rule for held-out images, and a source that is listed once."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcast.data import open_source
from patchcast.data import source as sources
from patchcast.data.source import pick_split


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """A number of noise images in each sub-folder ("" for the folder itself)."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def paths(images: sources.Images) -> set[str]:
    return {images.store.path(int(position)) for position in images.positions}


@pytest.mark.parametrize(
    ("splits", "during", "final"),
    [
        (["train", "val", "test"], "val", "test"),
        (["train", "validation"], "validation", "validation"),
        (["train", "test"], "test", "test"),
        (["train"], None, None),
    ],
)
def test_one_rule_picks_the_split(splits: list[str], during: str | None, final: str | None) -> None:
    assert pick_split(splits, prefer="validation") == during
    assert pick_split(splits, prefer="test") == final


def test_with_validation_and_test_each_has_its_role(tmp_path: Path) -> None:
    counts = {f"{split}/{kind}": count for split, count in (("train", 6), ("val", 2), ("test", 3)) for kind in "ab"}
    source = open_source(str(write_images(tmp_path, counts)), held_out_share=0.5)
    assert len(source.train) == 12, "nothing is taken from training where there are other splits"
    assert source.held_out is not None
    assert source.held_out.phrase == "images of the val split"
    assert all("/val/" in path for path in paths(source.held_out.images))
    labeled = source.labeled()
    assert all("/test/" in path for path in paths(labeled.test))
    assert labeled.phrase.endswith("judged on its test split")


def test_with_validation_only_both_roles_take_it(tmp_path: Path) -> None:
    source = open_source(str(write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})))
    assert source.shown.phrase == "images of the val split"
    assert paths(source.labeled().test) == paths(source.shown.images)


@pytest.mark.parametrize("is_labeled", [True, False])
def test_without_splits_a_share_is_held_out(tmp_path: Path, is_labeled: bool) -> None:
    counts = {"a": 60, "b": 40} if is_labeled else {"": 100}
    folder = str(write_images(tmp_path, counts))
    source = open_source(folder, held_out_share=0.05)
    held = source.held_out
    assert held is not None
    assert held.phrase == "images held out from training"
    assert (len(source.train), len(held.images)) == (95, 5)
    assert not paths(source.train) & paths(held.images)
    again = open_source(folder, held_out_share=0.05).held_out
    assert again is not None
    assert paths(again.images) == paths(held.images), "every run on a source holds out the same images"
    more = open_source(folder, held_out_share=0.5)
    assert more.held_out is not None
    assert paths(held.images) < paths(more.held_out.images)
    if is_labeled:
        labeled = source.labeled()
        assert (len(labeled.train), len(labeled.test)) == (80, 20)
        assert paths(held.images) < paths(labeled.test), "what training held out is judged on, and never fitted on"
        assert paths(labeled.test) == paths(open_source(folder).labeled().test), "whatever was held out"
        assert not paths(more.labeled().train) & paths(more.held_out.images)


def test_nothing_is_held_out_where_it_is_said_so(tmp_path: Path) -> None:
    folder = str(write_images(tmp_path, {"": 8}))
    assert open_source(folder).shown.phrase == "training images"
    few = open_source(folder, held_out_share=0.05)
    assert (few.held_out, len(few.train)) == (None, 8), "a twentieth of 8 images is none"
    with pytest.raises(ValueError, match=r"at least 0 and below 1; got 1.5"):
        open_source(folder, held_out_share=1.5)


def test_held_out_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_HELD_OUT", 3)
    source = open_source(str(write_images(tmp_path, {"": 20})), held_out_share=0.5)
    assert source.held_out is not None
    assert len(source.held_out.images) == 3


def test_stand_ins_come_from_the_same_part(tmp_path: Path) -> None:
    """A damaged image is replaced by a neighbor: never by one from the other side of the split."""
    folder = write_images(tmp_path, {"a": 30, "b": 30})
    for place, file in enumerate(sorted(folder.rglob("*.png"))):
        if place % 2:
            file.write_bytes(file.read_bytes()[:70])  # the header stays whole
    source = open_source(str(folder), held_out_share=0.2)
    assert source.held_out is not None
    whole = open_source(str(folder)).train
    even = [position for position in whole.positions.tolist() if position % 2 == 0]
    originals = {whole.store.path(position): whole.read(position).numpy().tobytes() for position in even}
    own = {originals[path] for path in paths(source.held_out.images) if path in originals}
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        read = {image.numpy().tobytes() for image, _ in (source.held_out.images[i] for i in range(12))}
    assert any("skipped" in str(warning.message) for warning in skipped)
    assert read == own


def test_labels_decide_which_split_is_judged_on(tmp_path: Path) -> None:
    """Of a test split without labels there is nothing to judge; images without a label are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = write_images(tmp_path / "one", {"": 1}).joinpath("000.png").read_bytes()
    for split, labels in (("train", [0, 1, 0, -1]), ("validation", [0, 1]), ("test", [-1, -1])):
        table = pa.table({"image": [content] * len(labels), "label": labels})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    labeled = open_source(f"{tmp_path}/{{train,validation,test}}.parquet").labeled()
    assert "judged on its validation split" in labeled.phrase
    assert labeled.train.labels is not None
    assert labeled.train.labels.tolist() == [0, 1, 0]


def test_a_class_of_one_image_stays_in_training(tmp_path: Path) -> None:
    labeled = open_source(str(write_images(tmp_path, {"a": 10, "b": 10, "c": 1}))).labeled()
    assert labeled.train.labels is not None
    assert labeled.test.labels is not None
    assert 2 in labeled.train.labels
    assert 2 not in labeled.test.labels


def test_a_source_is_listed_once_and_each_split_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, opened = [], []
    monkeypatch.setattr(sources, "find_splits", lambda *given: listed.append(given) or find(*given))
    monkeypatch.setattr(sources, "open_split", lambda *args, **named: opened.append(named) or open_(*args, **named))
    source = open_source(str(write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})))
    for _ in range(2):
        assert source.held_out
        assert source.labeled()
        assert source.shown
    assert (len(listed), len(opened)) == (1, 2)


find, open_ = sources.find_splits, sources.open_split
