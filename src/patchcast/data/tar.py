"""Images in tar shards, WebDataset's among them: an index of their members first, then any of them at any time."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from patchcast.data.decode import ImageFile
from patchcast.data.files import SourceFile, by_split
from patchcast.data.folder import SETTLED_SECONDS, class_names_of, pick_images
from patchcast.data.names import Names
from patchcast.data.split_folders import arrange
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_whole

BROKEN = -1
"""Offset of the entry that stands for what a broken shard has lost; its name is the reason."""
LONGEST_NOTE = 2**20
"""Bytes of a .cls or .json member; a longer one is no label."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
SAMPLE_NAME = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]*)$")


@dataclass
class Index:
    """Where each image of some shards lies.

    Attributes:
        folder: inside the shards, that holds all of the split; its name is no class.
    """

    shards: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    folder: str = ""


class TarStore(Store):
    """The images of uncompressed tar files, in their order.

    A tar file has no table of contents, so its headers are walked through once, and what is found is kept in the
    user's cache folder until a shard changes. From then on a shard is as good as a folder: any image at any time, and
    so shuffled without a buffer. Nothing is ever unpacked, and links inside are not followed.

    What a broken shard has lost is one unreadable image at its end.
    """

    def __init__(self, files: list[SourceFile], index: Index, class_names: list[str] | None) -> None:
        self.files = files
        self.shards, self.offsets, self.sizes = (
            np.array(each, dtype=np.int64) for each in (index.shards, index.offsets, index.sizes)
        )
        self.names = Names(index.names)
        self.class_names = class_names
        labels = np.array(index.labels, dtype=np.int64)
        self.labels = labels if (labels >= 0).any() else None

    def __len__(self) -> int:
        return len(self.offsets)

    def open(self, position: int) -> ImageFile:
        if self.offsets[position] == BROKEN:
            raise OSError(self.names[position])
        with open(self.files[self.shards[position]].path, "rb") as shard:
            shard.seek(self.offsets[position])
            return BytesIO(shard.read(self.sizes[position]))

    def path(self, position: int) -> str:
        shard = self.files[self.shards[position]].name
        return shard if self.offsets[position] == BROKEN else f"{shard}, {self.names[position]}"


def tar_splits(files: list[SourceFile]) -> Splits:
    """The splits of some tar files, by their names (`patchcast.data.files.by_split`).

    Labels are WebDataset's `.cls` beside an image, or the `label` of its `.json`, if these are whole numbers; or else
    the first folders inside, as in a folder of images.

    Raises:
        ValueError: if a file is no tar file, or is compressed; or none holds an image.
    """
    groups = by_split(files)
    indices = {name: find_index(group) for name, group in groups.items()}
    for name, index in indices.items():
        if all(offset == BROKEN for offset in index.offsets):
            reason = f"; {index.names[0]}" if index.names else ""
            raise ValueError(f"no images in the {len(groups[name])} tar files of {groups[name][0].name}{reason}")
    if len(groups) == 1:
        ((_, files), index) = next(iter(groups.items())), next(iter(indices.values()))
        indices = _by_folder(index, files[0].name)
        groups = dict.fromkeys(indices, files)
    class_names = None
    if all(label < 0 for index in indices.values() for label in index.labels):
        class_names = _label_by_folders(indices)
    return {name: partial(TarStore, groups[name], indices[name], class_names) for name in groups}


def _by_folder(index: Index, where: str) -> dict[str, Index]:
    """The splits that folders inside the shards tell; what a broken shard has lost is counted with the first."""
    real = [place for place, offset in enumerate(index.offsets) if offset != BROKEN]
    parts = arrange([index.names[place].removeprefix("./") for place in real], "/", where)
    splits: dict[str, Index] = {}
    for split, part in parts.items():
        splits[split] = _take(index, [real[place] for place in part.places])
        splits[split].folder = part.folder
    broken = _take(index, [place for place, offset in enumerate(index.offsets) if offset == BROKEN])
    first = next(iter(splits.values()))
    for place in range(len(broken.names)):
        _append(first, broken.shards[place], broken.names[place], BROKEN, 0, -1)
    if len(parts) == 1 and len(first.names) == len(index.names):
        index.folder = first.folder
        return dict.fromkeys(splits, index)  # in its own order
    return splits


def _take(index: Index, places: list[int]) -> Index:
    columns = (index.shards, index.offsets, index.sizes, index.labels, index.names)
    return Index(*([column[place] for place in places] for column in columns))  # type: ignore[arg-type]


def find_index(files: list[SourceFile]) -> Index:
    """The index of some shards, from the user's cache folder if it is there and no shard has changed."""
    states = [file.state for file in files]
    kept = cache_file(["tar", *states], ".index.npz")
    index = _kept_index(kept)
    if index is None:
        index = Index()
        for number, file in enumerate(files):
            _add_shard(index, number, file)
        newest = max(changed for _, _, changed in states)
        if time.time_ns() - newest > SETTLED_SECONDS * 10**9:
            with contextlib.suppress(OSError):  # a home that cannot be written to costs the time to index again
                write_whole(kept, lambda unfinished: _keep_index(unfinished, index))
    return index


def _add_shard(index: Index, number: int, file: SourceFile) -> None:
    images: list[tuple[str, int, int]] = []
    notes: dict[str, int] = {}
    broken = ""
    with open(file.path, "rb") as raw:
        if raw.read(6).startswith(COMPRESSED):
            raise ValueError(f"{file.name} is compressed, which allows no access at random: decompress it first")
        raw.seek(0)
        end = file.path.stat().st_size
        try:
            with tarfile.open(fileobj=raw, mode="r:") as shard:
                for member in shard:
                    if member.size < 0 or member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name} ends behind the file's end")
                    if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                        images.append((member.name, member.offset_data, member.size))
                        _note(notes, shard, member)
                raw.seek(shard.offset)
                if raw.read(512).strip(b"\0") or shard.offset >= end:  # tarfile ends in silence at either
                    raise tarfile.ReadError(f"no tar header at byte {shard.offset}")
        except Exception as problem:  # a hostile file can raise nearly anything: ValueError, OverflowError ...
            if not images:
                raise ValueError(f"{file.name} cannot be read as a tar file: {_reason(problem)}") from problem
            broken = f"broken after {images[-1][0]}, and the rest is lost: {_reason(problem)}"
    chosen = set(pick_images([name for name, _, _ in images]))
    for name, offset, size in images:
        if name in chosen:
            _append(index, number, name, offset, size, notes.get(_sample_of(name)[0], -1))
    if broken:
        _append(index, number, broken, BROKEN, 0, -1)


def _reason(problem: Exception) -> str:
    return str(problem).partition("\n")[0] or type(problem).__name__


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _append(index: Index, shard: int, name: str, offset: int, size: int, label: int) -> None:
    index.shards.append(shard)
    index.names.append(name)
    index.offsets.append(offset)
    index.sizes.append(size)
    index.labels.append(label)


def _sample_of(name: str) -> tuple[str, str]:
    """WebDataset's parts of a name: the sample, up to the first point of its last part, and what this file is of it.

    >>> _sample_of("train/0001.seg.png")
    ('train/0001', 'seg.png')
    """
    match = SAMPLE_NAME.match(name)
    return (match[1], match[2].lower()) if match else (name, "")


def _note(notes: dict[str, int], shard: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    sample, kind = _sample_of(member.name)
    if kind not in ("cls", "json") or member.size > LONGEST_NOTE:
        return
    opened = shard.extractfile(member)  # a file object on the member's bytes; nothing is unpacked
    assert opened is not None
    with contextlib.suppress(ValueError):  # text that is no number is no label
        value = json.loads(opened.read())
        label = value.get("label") if isinstance(value, dict) else value
        if type(label) is int and (kind == "cls" or sample not in notes):
            notes[sample] = label


def _label_by_folders(indices: Mapping[str, Index]) -> list[str] | None:
    def inside(index: Index, name: str) -> str:
        return name.removeprefix("./").removeprefix(f"{index.folder}/" if index.folder else "")

    real = [
        inside(index, name)
        for index in indices.values()
        for name, offset in zip(index.names, index.offsets, strict=True)
        if offset != BROKEN
    ]
    class_names = class_names_of(real, "/")
    number = {name: label for label, name in enumerate(class_names or [])}
    for index in indices.values():
        index.labels = [number.get(inside(index, name).partition("/")[0], -1) for name in index.names]
    return class_names


def _keep_index(file: Path, index: Index) -> None:
    names = np.frombuffer(json.dumps(index.names).encode(), dtype=np.uint8)
    numbers = np.array([index.shards, index.offsets, index.sizes, index.labels], dtype=np.int64)
    np.savez(file, names=names, numbers=numbers)


def _kept_index(file: Path) -> Index | None:
    try:
        with np.load(file) as kept:
            shards, offsets, sizes, labels = kept["numbers"].tolist()
            return Index(shards, offsets, sizes, labels, json.loads(kept["names"].tobytes()))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
