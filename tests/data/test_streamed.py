"""Streams: windows that are shuffled, batches that do not depend on where a run was stopped, bad rows replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from patchcast.cli import main
from patchcast.data import Augment, StreamSet, open_images, streamed
from patchcast.data.sampling import loader
from patchcast.training.stream import Stream
from tests.data.test_sources import values
from tests.data.test_tar import png

datasets = pytest.importorskip("datasets")
COUNT, BATCH = 50, 4


@pytest.fixture
def source(tmp_path, monkeypatch) -> str:
    """Fifty images in three files; the seventh is broken, and the ninth is not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(streamed, "WINDOW", 16)
    monkeypatch.setattr(streamed, "HEAD", 6)
    folder = tmp_path / "mine"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for number, (first, last) in enumerate([(0, 20), (20, 27), (27, COUNT)]):
        images = [{"bytes": png(row)[: 50 if row == 7 else None], "path": None} for row in range(first, last)]
        rows = {"image": [None if first + at == 9 else each for at, each in enumerate(images)]}
        rows["label"] = [row % 2 for row in range(first, last)]
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(folder / f"train-{number}.parquet", batch_size=5)
    return f"hf-stream:{folder}"


def batches(source: str, steps: int, **how) -> list[list[int]]:
    sampler = streamed.WindowSampler(open_images(source).store.stream, BATCH, seed=3, steps=steps, **how)
    return [[row.epoch * COUNT + row.number for row in batch] for batch in sampler]


def test_its_beginning_is_a_source(source):
    images = open_images(source)
    assert (values(images), images.labels.tolist(), images.class_names) == ([0, 1, 2, 3, 4, 5], [0, 1] * 3, ["a", "b"])
    assert (images.channels, images.typical_size, images.splits) == (1, (6, 8), ["train"])


def test_every_row_comes_once_a_pass_shuffled_in_windows(source):
    found = batches(source, 30)
    assert [len(batch) for batch in found] == [BATCH] * 30
    for window in range(7):
        rows = [row for batch in found[4 * window : 4 * window + 4] for row in batch]
        assert sorted(rows) == list(range(16 * window, 16 * window + 16))
        assert rows != sorted(rows)
    orders = {tuple(row - 16 * (at // 4) for batch in found[at : at + 4] for row in batch) for at in range(0, 28, 4)}
    assert len(orders) == 7, "each window has an order of its own"


def test_any_step_is_gone_on_from_with_and_without_its_place(source):
    whole = batches(source, 30)
    sampler = streamed.WindowSampler(open_images(source).store.stream, BATCH, seed=3, steps=30)
    taken = iter(sampler)
    for step in range(1, 30):
        next(taken)
        place = json.loads(json.dumps(sampler.place(step)))  # plain values, as in a checkpoint
        if step in (1, 3, 4, 5, 11, 12, 16, 17, 29):  # inside and between windows, files and passes
            assert batches(source, 30, start_step=step, place=place) == whole[step:]
    assert batches(source, 30, start_step=13) == whole[13:]
    assert len(sampler.places) <= 3, "places of windows gone by are forgotten"


def test_ranks_share_a_batch(source):
    whole = batches(source, 9)
    halves = [batches(source, 9, rank=rank, world=2) for rank in range(2)]
    assert [one + two for one, two in zip(*halves, strict=True)] == whole
    pieces = batches(source, 9, accumulate=2)
    assert [one + two for one, two in zip(pieces[::2], pieces[1::2], strict=True)] == whole
    with pytest.raises(ValueError, match="by 2 ranks in 4 pieces"):
        batches(source, 9, world=2, accumulate=4)


@pytest.mark.filterwarnings("ignore:skipped")
def test_pixels_do_not_depend_on_workers_or_a_stop(source):
    def stream(workers: int) -> Stream:
        augment = Augment((6, 8), (0.4, 1.0), False, (0.0,), (1 / 255,))
        train_set = StreamSet(open_images(source).store.stream, 1, augment, seed=3)
        return Stream(train_set, batch_size=BATCH, steps=20, seed=3, workers=workers)

    whole = list(stream(0))
    seen = {round(float(image.mean())) for images, _ in whole for image in images}
    assert seen == set(range(COUNT)) - {7, 9}
    for images, labels in whole:
        assert [round(float(image.mean())) % 2 for image in images] == labels.tolist(), "a replacement's own label"
    first = stream(2)
    halted = iter(first)
    for _ in range(13):
        next(halted)
    state = first.state_dict()
    second = stream(0)
    second.load_state_dict(state)
    for mine, theirs in zip(second, whole[13:], strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("switch", [4, 5])
def test_a_second_set_goes_on_where_the_first_one_ends(source, switch):
    """Inside a window and between two; a run that stops next to the switch resumes as well."""
    rows = open_images(source).store.stream

    def stream(*later: int) -> Stream:
        sets = [StreamSet(rows, 1, lambda image, seed: image, seed=3) for _ in range(2)]
        return Stream(
            sets[0],
            batch_size=BATCH,
            steps=12,
            seed=3,
            workers=0,
            later=[(step, sets[1]) for step in later],
            ahead=True,
        )

    whole = list(stream())
    assert len(whole) == 12
    for stop in (0, switch - 1, switch, switch + 1):
        first = stream(switch)
        batches = iter(first)
        before = [next(batches) for _ in range(stop)]
        second = stream(switch)
        second.load_state_dict(first.state_dict())
        for mine, theirs in zip([*before, *second], whole, strict=True):
            assert torch.equal(mine[0], theirs[0])


def test_bad_rows_are_named(source):
    train_set = StreamSet(open_images(source).store.stream, 1, lambda image, seed: image, seed=0)
    bad = [streamed.StreamRow(0, 7, b"words", 0), streamed.StreamRow(0, 9, None, 0)]
    with pytest.warns(UserWarning, match="row 7: no known image format"):
        train_set.__getitems__([*bad, streamed.StreamRow(0, 1, png(1), 1)])
    with (
        pytest.warns(UserWarning, match="row 9: no bytes in this row"),
        pytest.raises(ValueError, match=r"none of the 2 images of a batch of hf-stream:.* train can be read"),
    ):
        train_set.__getitems__(bad)


def test_streams_that_end_in_a_sentence(tmp_path, source):
    with pytest.raises(ValueError, match=r"^hf-stream:.*nowhere cannot be fetched: [^\n]+$"):
        open_images(f"hf-stream:{tmp_path / 'nowhere'}")
    broken = Path(source.removeprefix("hf-stream:")) / "train-1.parquet"
    content = bytearray(broken.read_bytes())
    content[4:400] = bytes(396)
    stream = open_images(source).store.stream
    broken.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"^hf-stream:.* cannot be read on from row 20: [^\n]*$"):
        list(streamed.WindowSampler(stream, BATCH, seed=0, steps=20))


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.filterwarnings("ignore:skipped")
def test_pretraining_on_a_stream(source, tmp_path, capsys):
    command = ["pretrain", "--method", "mae", "--model", "test_vit", "--data", source, "--batch_size", "4"]
    command += ["--workers", "0", "--out", str(tmp_path / "run"), "--crop_scale", "[0.5, 1]", "--image_size", "[8, 8]"]
    assert main(command) == 2
    assert "is a stream of unknown length: give --steps" in capsys.readouterr().err
    assert main([*command, "--steps", "6"]) == 0
    assert "a stream of hf-stream:" in " ".join(capsys.readouterr().out.split())
    assert main([*command[:2], "imagegpt", *command[3:4], "imagegpt_s", *command[5:], "--steps", "6"]) == 2
    assert "which a stream does not allow" in capsys.readouterr().err


def test_a_loader_of_a_stream_knows_its_length(source):
    train_set = StreamSet(open_images(source).store.stream, 1, lambda image, seed: image, seed=0)
    assert len(loader(train_set, train_set.sampler(BATCH, seed=0, steps=7), 0)) == 7
