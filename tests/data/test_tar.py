"""Tar shards: any image at any time, labels as WebDataset writes them, and what a broken shard leaves."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from patchcast.data import check, open_images, tar
from tests.data.test_decode import encode
from tests.data.test_sources import values


def png(value: int) -> bytes:
    return encode(Image.new("L", (8, 6), value)).getvalue()


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def webdataset(path: Path, first: int, count: int, **notes) -> Path:
    members: dict[str, bytes] = {}
    for value in range(first, first + count):
        members[f"{value:04}.png"] = png(value)
        for kind, make in notes.items():
            members[f"{value:04}.{kind}"] = make(value)
    return pack(path, members)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_shards_by_braces_with_labels_of_cls(tmp_path):
    for shard in range(3):
        webdataset(tmp_path / f"shard-{shard:03}.tar", 10 * shard, 2, cls=lambda value: str(value % 10).encode())
    images = open_images(str(tmp_path / "shard-{000..002}.tar"))
    assert values(images) == [0, 1, 10, 11, 20, 21]
    assert images.labels.tolist() == [label for _, label in images] == [0, 1, 0, 1, 0, 1]
    assert (images.channels, images.typical_size, images.splits, images.class_names) == (1, (6, 8), ["train"], None)
    assert images.store.path(3) == f"{tmp_path}/shard-001.tar, 0011.png"
    assert values(open_images(str(tmp_path))) == [0, 1, 10, 11, 20, 21], "a folder of shards is the same"
    assert [values(images)[place] for place in (5, 0, 3)] == [int(images[p].image[0, 0, 0]) for p in (5, 0, 3)]


def test_shards_are_what_webdataset_reads(tmp_path):
    """The same samples, names and classes as the format's own library finds."""
    webdataset_library = pytest.importorskip("webdataset")
    path = webdataset(tmp_path / "a.tar", 0, 3, cls=lambda value: str(value).encode(), json=lambda value: b"{}")
    theirs = webdataset_library.WebDataset(str(path), shardshuffle=False)
    ours = open_images(str(path))
    found = [(sample["__key__"], sample["png"], int(sample["cls"])) for sample in theirs]
    assert [name for name, _, _ in found] == [
        ours.store.path(place).rpartition(", ")[2].removesuffix(".png") for place in range(3)
    ]
    assert [content for _, content, _ in found] == [ours.store.open(place).read() for place in range(3)]
    assert [label for _, _, label in found] == ours.labels.tolist()


def test_labels_of_json_and_of_folders(tmp_path):
    def note(value: int) -> bytes:
        return json.dumps({"caption": "a", "label": value + 5} if value else {"label": "text"}).encode()

    images = open_images(str(webdataset(tmp_path / "a.tar", 0, 3, json=note)))
    assert (images.labels.tolist(), images.class_names) == ([2, 0, 1], ["6", "7", "text"])
    by_folder = {"./dog/1.png": png(1), "./cat/2.png": png(2), "./cat/._2.png": b"a file manager's", "./x.txt": b""}
    images = open_images(str(pack(tmp_path / "b.tar", by_folder)))
    assert (images.class_names, images.labels.tolist(), values(images)) == (["cat", "dog"], [1, 0], [1, 2])
    assert open_images(str(webdataset(tmp_path / "c.tar", 0, 2, txt=lambda value: b"a caption"))).labels is None


def test_splits_by_the_shards_names(tmp_path):
    webdataset(tmp_path / "imagenet-train-0.tar", 0, 2)
    webdataset(tmp_path / "imagenet-train-1.tar", 2, 2)
    webdataset(tmp_path / "imagenet-val-0.tar", 7, 1)
    for source in (tmp_path, tmp_path / "imagenet-{train-0,train-1,val-0}.tar"):
        train, val = (open_images(str(source), split=split) for split in ("train", "val"))
        assert (values(train), values(val), train.splits) == ([0, 1, 2, 3], [7], ["train", "val"])
    assert values(open_images(str(tmp_path / "imagenet-val-{0..0}.tar"))) == [7]


def test_the_index_is_made_once_until_a_shard_changes(tmp_path, monkeypatch):
    path = webdataset(tmp_path / "a.tar", 0, 3, cls=lambda value: b"4")
    open_images(str(path))
    assert not list((tmp_path / "cache").rglob("*.npz")), "a shard that changed a moment ago may still be written to"
    os.utime(path, (1e9, 1e9))
    first = open_images(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(tar, "_add_shard", lambda *_: pytest.fail("indexed again"))
        second = open_images(str(path))
    assert values(second) == values(first) == [0, 1, 2]
    assert second.labels.tolist() == [4, 4, 4]
    webdataset(path, 5, 4)
    assert values(open_images(str(path))) == [5, 6, 7, 8]


def test_remote_shards_are_fetched_once(tmp_path, monkeypatch):
    import fsspec

    remote = fsspec.filesystem("memory")
    for shard in range(2):
        local = webdataset(tmp_path / "made.tar", 10 * shard, 2)
        remote.pipe_file(f"/bucket/shard-{shard}.tar", local.read_bytes())
    fetched = []
    get_file = type(remote).get_file
    monkeypatch.setattr(type(remote), "get_file", lambda self, *args: fetched.append(args) or get_file(self, *args))
    source = "memory://bucket/shard-{0..1}.tar"
    images = open_images(source)
    assert values(images) == values(open_images(source)) == [0, 1, 10, 11]
    assert len(fetched) == 2
    assert images.store.path(2) == "memory://bucket/shard-1.tar, 0010.png"
    assert images.name == "shard-{0..1}.tar"
    assert not list((tmp_path / "cache").rglob("*.part"))
    with pytest.raises(ValueError, match=r"^memory://bucket/shard-2\.tar cannot be fetched: "):
        open_images("memory://bucket/shard-{0..2}.tar")
    with pytest.raises(ValueError, match=r"^nosuch://a\.tar cannot be fetched: Protocol not known: nosuch"):
        open_images("nosuch://a.tar")


def test_missing_and_wrong_files_are_named(tmp_path):
    webdataset(tmp_path / "shard-0.tar", 0, 1)
    with pytest.raises(ValueError, match=r"shard-1\.tar is not there, and 1 more$"):
        open_images(str(tmp_path / "shard-{0..2}.tar"))
    with pytest.raises(ValueError, match="counts backwards"):
        open_images("shard-{5..2}.tar")
    for number, content in enumerate((b"", b"no tar at all" * 100, bytes(20_000))):
        (tmp_path / f"bad{number}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad{number}\.tar cannot be read as a tar file: |no images in"):
            open_images(str(tmp_path / f"bad{number}.tar"))
    zipped = pack(tmp_path / "zipped.tar", {"1.png": png(1)}, "w:gz")
    with pytest.raises(ValueError, match=r"zipped\.tar is compressed, .*decompress it first"):
        open_images(str(zipped))
    with pytest.raises(ValueError, match="no images in the 1 tar files"):
        open_images(str(pack(tmp_path / "words.tar", {"a.txt": b"words"})))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "no end"])
def test_a_broken_shard_keeps_what_it_has_and_is_listed(tmp_path, damage):
    webdataset(tmp_path / "shard-0.tar", 0, 3)
    whole = (tmp_path / "shard-0.tar").read_bytes()
    (tmp_path / "shard-0.tar").write_bytes(
        {
            "truncated": whole[:1560],  # a header and one block an image: in the middle of the second's
            "garbage": whole[:2048] + b"\x07" * 512 + whole[2560:],
            "no end": whole[:3072],
        }[damage]
    )
    webdataset(tmp_path / "shard-1.tar", 7, 1)
    with pytest.warns(UserWarning, match=r"skipped .*shard-0\.tar: broken after 000\d\.png, and the rest is lost: "):
        images = open_images(str(tmp_path))
    kept = {"truncated": [0], "garbage": [0, 1], "no end": [0, 1, 2]}[damage]
    assert values(images) == [*kept, 7]
    assert [bad.index for bad in check(images).unreadable] == [len(kept)]


def test_corrupt_members_are_skipped_and_named(tmp_path):
    members = {"1.png": png(1), "2.png": b"", "3.png": b"words", "4.png": png(4)[:50], "5.png": png(5)}
    with pytest.warns(UserWarning, match=r"skipped .*a\.tar, 3\.png: no known image format"):
        images = open_images(str(pack(tmp_path / "a.tar", members)))
    assert len(images) == 3
    with pytest.warns(UserWarning, match=r"skipped .*a\.tar, 4\.png: "):
        assert values(images) == [1, 5, 5]


def test_links_inside_a_shard_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE), ("3.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            shard.addfile(info)
        info = tarfile.TarInfo("../../4.png")
        info.size = len(png(4))
        shard.addfile(info, io.BytesIO(png(4)))
        info = tarfile.TarInfo("5.png")
        info.size = len(png(5))
        shard.addfile(info, io.BytesIO(png(5)))
    assert values(open_images(str(tmp_path / "a.tar"))) == [5]
    assert not list(tmp_path.parent.parent.glob("4.png"))


def test_shards_travel_to_workers(tmp_path):
    images = open_images(str(webdataset(tmp_path / "a.tar", 0, 50)))
    assert values(pickle.loads(pickle.dumps(images))) == list(range(50))
