"""`Images`: channels follow the data, and bad files are skipped, counted and named."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.data import Augment, EpochSampler, TrainSet, Unreadable, check, loader, open_images
from patchcast.data import images as images_module
from tests.data.test_decode import bomb, encode
from tests.data.test_sources import draw, values, write


def truncated(value: int) -> bytes:
    chance = np.random.default_rng(value)
    whole = encode(Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "jpeg", quality=95).getvalue()
    return whole[: len(whole) * 3 // 4]


@pytest.fixture
def damaged(tmp_path):
    """Good images 0, 2, 3 and 6; 1 and 4 break at their header, 5 and 7 at their pixels."""
    for value in (0, 2, 3, 6):
        draw(tmp_path / f"{value}.png", value, size=(32, 32))
    (tmp_path / "1.jpg").write_text("this is no image")
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "5.jpg").write_bytes(truncated(5))
    (tmp_path / "7.jpg").write_bytes(truncated(7))
    return tmp_path


@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_headers_are_left_out_and_bad_pixels_replaced_by_the_next(damaged):
    images = open_images(str(damaged))
    assert len(images) == 6
    assert [(bad.index, bad.path, bad.reason) for bad in images.unreadable] == [
        (1, str(damaged / "1.jpg"), "no known image format"),
        (4, str(damaged / "4.png"), "empty file"),
    ]
    # 5 is replaced by 6, and 7, the last, by 0, the first.
    assert values(images[index] for index in range(6)) == [0, 2, 3, 6, 6, 0]
    assert [bad.index for bad in images.unreadable] == [1, 4, 5, 7]
    assert "truncated" in images.unreadable[2].reason
    assert values(images[index] for index in reversed(range(6))) == [0, 6, 6, 3, 2, 0]


def test_each_bad_file_is_warned_of_once(damaged):
    with pytest.warns(UserWarning, match="^skipped ") as opened:
        images = open_images(str(damaged))
    assert len(opened) == 2
    with pytest.warns(UserWarning, match=r"^skipped .*5\.jpg: ") as read:
        values(images[3] for _ in range(3))
    assert len([each for each in read if "skipped" in str(each.message)]) == 1


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_replacement_brings_its_own_label(tmp_path):
    draw(tmp_path / "a" / "1.png", 1, size=(32, 32))
    (tmp_path / "a" / "2.jpg").write_bytes(truncated(2))
    draw(tmp_path / "b" / "3.png", 3, size=(32, 32))
    image, label = open_images(str(tmp_path))[1]
    assert (int(image[0, 0, 0]), label) == (3, 1)


@pytest.mark.filterwarnings("ignore:skipped")
def test_labels_stay_beside_their_images_when_some_are_left_out(tmp_path):
    for position in range(6):
        draw(tmp_path / "xyz"[position % 3] / f"{position}.png", position)
    (tmp_path / "x" / "0.png").write_bytes(b"")
    (tmp_path / "y" / "4.png").write_bytes(b"")
    images = open_images(str(tmp_path))
    assert images.labels.tolist() == [label for _, label in images] == [0, 1, 2, 2]
    assert values(images) == [3, 1, 2, 5]


@pytest.mark.filterwarnings("ignore:skipped")
def test_check_finds_all_and_counts_sizes(damaged):
    draw(damaged / "8.png", 8, size=(10, 12))
    report = check(open_images(str(damaged)))
    assert report.readable == 5
    assert report.sizes == {(32, 32): 4, (10, 12): 1}
    assert [bad.index for bad in report.unreadable] == [1, 4, 5, 7]
    text = str(report)
    assert "5 readable images (4 of 32x32, 1 of 10x12), 4 unreadable" in text
    assert f"{damaged / '4.png'}: empty file" in text


@pytest.mark.filterwarnings("ignore:skipped")
def test_check_measures_channels_sizes_and_labels(tmp_path):
    for label, (value, size) in enumerate([(0, (4, 5)), (255, (8, 10)), (51, (2, 2))]):
        draw(tmp_path / "ab"[label > 0] / f"{label}.png", value, size=size)
    (tmp_path / "b" / "3.png").write_bytes(b"words")
    images = open_images(str(tmp_path))
    for workers in (0, 2):
        report = check(images, workers=workers)
        assert report.size_range == ((2, 2), (4, 5), (8, 10))
        assert report.labels == {0: 1, 1: 2}
        assert report.class_names == ["a", "b"]
        assert report.mean == pytest.approx([(80 + 4 * 0.2) / 104] * 3)
        assert report.std == pytest.approx([np.std([0.0] * 20 + [1.0] * 80 + [0.2] * 4)] * 3)
        assert [bad.reason for bad in report.unreadable] == ["no known image format"]
    few = check(images, limit=2)
    assert (few.readable, len(few.unreadable)) == (1, 1)


@pytest.mark.filterwarnings("ignore:skipped")
def test_bombs_are_left_out(tmp_path):
    draw(tmp_path / "1.png", 1)
    (tmp_path / "2.png").write_bytes(bomb())
    images = open_images(str(tmp_path))
    assert values(images) == [1]
    assert images.unreadable[0].reason.startswith("decompression bomb")


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_large_source_is_not_verified_at_opening_and_still_survives(damaged, monkeypatch):
    monkeypatch.setattr(images_module, "VERIFY_UP_TO", 3)
    monkeypatch.setattr(images_module, "SAMPLE_SIZE", 3)
    images = open_images(str(damaged))
    assert len(images) == 8 - len(images.unreadable)
    assert [value for value in values(images) if value not in (0, 2, 3, 6)] == []
    assert len(check(images).unreadable) == 4


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_source_with_nothing_readable_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("words")
    with pytest.raises(ValueError, match=r"none of the 2 images of .* can be read; the first: .*a\.png: empty file"):
        open_images(str(tmp_path))


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_source_that_disappears_ends_in_one_sentence(tmp_path):
    for value in range(3):
        draw(tmp_path / "photos" / f"{value}.png", value)
    images = open_images(str(tmp_path / "photos"))
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"3 images in a row of photos .*is the source still there\? .*No such file"):
        images[0]


def test_index_out_of_range():
    images = open_images("digits")
    with pytest.raises(IndexError, match="1437"):
        images[1437]


# ---- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L", "L", "1"], 1),
        (["L", "RGB", "L"], 3),
        (["L", "RGBA"], 3),
        (["RGBA", "RGBA"], 4),
        (["LA", "L"], 1),
        (["CMYK"], 3),
    ],
)
def test_channels_follow_the_data(tmp_path, modes, channels):
    for number, mode in enumerate(modes):
        Image.new("RGBA", (4, 4), (50, 60, 70, 90)).convert(mode).save(
            tmp_path / f"{number}.{'tif' if mode == 'CMYK' else 'png'}"
        )
    images = open_images(str(tmp_path))
    assert images.channels == channels
    assert {example.image.shape for example in images} == {(channels, 4, 4)}


def test_an_alpha_channel_that_says_nothing_is_dropped(tmp_path):
    Image.new("RGBA", (4, 4), (50, 60, 70, 255)).save(tmp_path / "opaque.png")
    assert open_images(str(tmp_path)).channels == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_can_be_chosen(channels):
    images = open_images("digits", channels=channels)
    gray = open_images("digits")[5].image
    image = images[5].image
    assert image.shape == (channels, 8, 8)
    assert torch.equal(image[:3], gray.expand(min(channels, 3), -1, -1))
    if channels == 4:
        assert (image[3] == 255).all()


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="1, 3, 4 channels; asked for 2"):
        open_images("digits", channels=2)


def test_typical_size_is_the_most_common(tmp_path):
    for number, size in enumerate([(10, 12), (6, 8), (6, 8), (9, 9)]):
        draw(tmp_path / f"{number}.png", size=size)
    assert open_images(str(tmp_path)).typical_size == (6, 8)


# ---- preloading ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:skipped")
def test_preloading_changes_nothing_that_is_read(damaged):
    lazy, preloaded = open_images(str(damaged)), open_images(str(damaged))
    assert preloaded.preload()
    for index in range(len(lazy)):
        assert torch.equal(lazy[index].image, preloaded[index].image)
        assert lazy[index].label == preloaded[index].label
    assert preloaded.unreadable == lazy.unreadable


def test_preloaded_images_are_not_read_again(tmp_path):
    draw(tmp_path / "1.png", 1)
    images = open_images(str(tmp_path))
    assert images.preload()
    (tmp_path / "1.png").unlink()
    assert values(images) == [1]
    assert images.preload()


@pytest.mark.parametrize(("how", "decoded"), [({}, True), ({"accumulate": 4}, True), ({"world": 4}, False)])
def test_images_are_decoded_once_where_a_rank_reads_each_twice(how, decoded):
    """However many pieces a batch is taken in; of four ranks, each reads half of the images."""
    images = open_images("digits")
    train_set = TrainSet(images, Augment((8, 8), None, False, (0.3,), (0.4,)), seed=0)
    half = EpochSampler(len(images), 32, seed=0, steps=len(images) // 32, accumulate=4)
    loader(train_set, half, workers=0)
    assert not images.is_preloaded
    loader(train_set, EpochSampler(len(images), 32, seed=0, steps=len(images) // 16 + 1, **how), workers=0)
    assert images.is_preloaded == decoded


def test_what_is_too_large_or_of_several_sizes_is_not_preloaded(tmp_path, monkeypatch):
    draw(tmp_path / "1.png", 1)
    draw(tmp_path / "2.png", 2, size=(5, 5))
    images = open_images(str(tmp_path))
    assert not images.preload()
    assert values(images) == [1, 2]
    monkeypatch.setattr(images_module, "DECODED_BYTES", 1000)
    assert not open_images("digits").preload()


# ---- processes -------------------------------------------------------------------------------------------------------


def test_images_travel_to_other_processes_without_their_bytes(tmp_path):
    images = open_images(str(write(tmp_path / "some.parquet", rows=200)))
    expected = values(images)
    pickled = pickle.dumps(images)
    assert len(pickled) < 200 * 60  # a row's PNG alone is longer
    assert values(pickle.loads(pickled)) == expected


def test_unreadable_sorts_by_place():
    assert sorted([Unreadable(2, "a", "x"), Unreadable(1, "b", "y")])[0].index == 1


def test_no_warning_on_sound_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = open_images("digits")
        assert images[0].image.is_contiguous()
