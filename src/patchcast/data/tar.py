"""Images in tar shards, including WebDataset's: the members are indexed once, and then read in any order."""

from __future__ import annotations

import json
import tarfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from patchcast.data.columns import ANY_LABEL, COARSER, LABEL_COLUMNS, Columns, Value, number_classes
from patchcast.data.companions import sample_of, second_images
from patchcast.data.decode import ImageFile
from patchcast.data.folder import SETTLED_SECONDS, class_names_of, pick_images, why_no_classes
from patchcast.data.names import Names, printable
from patchcast.data.source_files import SourceFile, by_split
from patchcast.data.split_folders import arrange
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_cache

BROKEN = -1
"""Offset of the entry that represents the lost part of a broken shard; its name is the reason."""
LONGEST_NOTE = 2**20
"""Maximum bytes of a .cls or .json member; longer ones are not labels."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass
class Index:
    """The positions of all images in some shards.

    Attributes:
        labels: labels as written in the shards, None for unlabeled images.
        folder: the folder inside the shards that holds the whole split; its name is not a class.
    """

    shards: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[Value] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    folder: str = ""


class TarStore(Store):
    """The images of uncompressed tar files, in file order.

    A tar file has no table of contents, so its headers are read once, and the index is stored in the user's cache
    folder until a shard changes. Images can then be read in any order, without a shuffle buffer. Nothing is unpacked,
    and links inside are not followed.

    The lost part of a broken shard counts as one unreadable image at its end.
    """

    def __init__(
        self,
        files: list[SourceFile],
        index: Index,
        labels: np.ndarray,
        class_names: list[str] | None,
        no_labels: str = "",
    ) -> None:
        self.files = files
        self.no_labels = no_labels
        self.shards, self.offsets, self.sizes = (
            np.array(column, dtype=np.int64) for column in (index.shards, index.offsets, index.sizes)
        )
        self.names = Names(index.names)
        self.class_names = None if class_names is None else [printable(name) for name in class_names]
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
        return printable(shard if self.offsets[position] == BROKEN else f"{shard}, {self.names[position]}")


def tar_splits(files: list[SourceFile], columns: Columns = ANY_LABEL) -> Splits:
    """The splits of some tar files, by file name (`patchcast.data.source_files.by_split`).

    Labels are WebDataset's `.cls` of an image's sample, or the `label` in its `.json`; otherwise the first folder in an
    image's path, as in a folder of images.

    Raises:
        ValueError: if a file is not a tar file or is compressed, or if there are no images.
    """
    groups = by_split(files)
    indices = {
        name: _without_masks(find_index(group, columns.label), group[0].name, columns.image)
        for name, group in groups.items()
    }
    for name, index in indices.items():
        if all(offset == BROKEN for offset in index.offsets):
            reason = f"; {index.names[0]}" if index.names else ""
            raise ValueError(f"no images in the {len(groups[name])} tar files of {groups[name][0].name}{reason}")
    if len(groups) == 1:
        ((_, files), index) = next(iter(groups.items())), next(iter(indices.values()))
        indices = _by_folder(index, files[0].name)
        groups = dict.fromkeys(indices, files)
    reason = ""
    if all(label is None for index in indices.values() for label in index.labels):
        if columns.label is not None:
            raise ValueError(f"no sample of {files[0].name} has a label called {columns.label!r}")
        reason = _label_by_folders(indices)
    numbers, class_names = number_classes({label for index in indices.values() for label in index.labels})
    labels = {
        name: np.array([numbers[label] for label in index.labels], dtype=np.int64) for name, index in indices.items()
    }
    return {name: partial(TarStore, groups[name], indices[name], labels[name], class_names, reason) for name in groups}


def _without_masks(index: Index, where: str, asked: str | None) -> Index:
    """Leave out images that belong to another image of the same sample, such as `0001.seg.png` to `0001.png`.

    Args:
        asked: the kind of file (`seg.png`) that is the image, if the user named it.
    """
    if asked is not None:
        kinds = [sample_of(name)[1] for name in index.names]
        chosen = [place for place, kind in enumerate(kinds) if kind == asked.lower() or index.offsets[place] == BROKEN]
        if not chosen:
            raise ValueError(f"{where} has no images called {asked!r}: it has {', '.join(sorted(set(kinds)))}")
        return _take(index, chosen)
    second = second_images(index.names)
    if not second:
        return index
    warnings.warn(
        f"passed over {len(second):,} images of {where}, each one of several in its sample: {index.names[second[0]]}",
        stacklevel=3,
    )
    return _take(index, np.setdiff1d(np.arange(len(index.names)), second).tolist())


def _by_folder(index: Index, where: str) -> dict[str, Index]:
    """The splits named by folders inside the shards; the lost part of a broken shard counts with the first split."""
    real = [place for place, offset in enumerate(index.offsets) if offset != BROKEN]
    parts = arrange([index.names[place].removeprefix("./") for place in real], "/", where)
    splits: dict[str, Index] = {}
    for split, part in parts.items():
        splits[split] = _take(index, [real[place] for place in part.places])
        splits[split].folder = part.folder
    broken = _take(index, [place for place, offset in enumerate(index.offsets) if offset == BROKEN])
    first = next(iter(splits.values()))
    for place in range(len(broken.names)):
        _append(first, broken.shards[place], broken.names[place], BROKEN, 0, None)
    if len(parts) == 1 and len(first.names) == len(index.names):
        index.folder = first.folder
        return dict.fromkeys(splits, index)  # in its own order
    return splits


def _take(index: Index, places: list[int]) -> Index:
    columns = (index.shards, index.offsets, index.sizes, index.labels, index.names)
    return Index(*([column[place] for place in places] for column in columns))  # type: ignore[arg-type]


def find_index(files: list[SourceFile], asked: str | None = None) -> Index:
    """The index of some shards, from the user's cache folder if no shard has changed."""
    states = [file.state for file in files]
    cached = cache_file(["tar, labels as written or the only one of a list", asked, *states], ".index.npz")
    index = _read_index(cached)
    if index is None:
        index = Index()
        for number, file in enumerate(files):
            _add_shard(index, number, file, asked)
        newest = max(state.changed for state in states)
        if time.time_ns() - newest > SETTLED_SECONDS * 10**9:
            write_cache(cached, lambda unfinished: _write_index(unfinished, index))
    return index


def _add_shard(index: Index, number: int, file: SourceFile, asked: str | None) -> None:
    images: list[tuple[str, int, int]] = []
    notes: dict[str, Value] = {}
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
                        raise tarfile.ReadError(f"{member.name} ends after the file's end")
                    if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                        images.append((member.name, member.offset_data, member.size))
                        _note(notes, shard, member, asked)
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
            _append(index, number, name, offset, size, notes.get(sample_of(name)[0]))
    if broken:
        _append(index, number, broken, BROKEN, 0, None)


def _reason(problem: Exception) -> str:
    return str(problem).partition("\n")[0] or type(problem).__name__


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _append(index: Index, shard: int, name: str, offset: int, size: int, label: Value) -> None:
    index.shards.append(shard)
    index.names.append(name)
    index.offsets.append(offset)
    index.sizes.append(size)
    index.labels.append(label)


def _note(notes: dict[str, Value], shard: tarfile.TarFile, member: tarfile.TarInfo, asked: str | None) -> None:
    """Record the label that a member gives its sample; a `.cls` member takes precedence over a field of `.json`."""
    sample, kind = sample_of(member.name)
    own = ("cls", "class", "label") if asked is None else (asked.lower(),)
    if kind not in (*own, "json") or member.size > LONGEST_NOTE:
        return
    opened = shard.extractfile(member)  # a file object on the member's bytes; nothing is unpacked
    assert opened is not None
    text = opened.read().decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        value = text or None  # `007`, `cat`
    if kind == "json" and kind not in own:
        value = _field(value, asked)
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    is_label = value is not None and isinstance(value, (int, float, bool, str))
    if is_label and (kind in own or sample not in notes):
        notes[sample] = value


def _field(value: Any, asked: str | None) -> Any:
    if not isinstance(value, dict):
        return None
    if asked is not None:
        return value.get(asked)
    names = [name for name in value if name in (*LABEL_COLUMNS, *COARSER)]
    order = [*LABEL_COLUMNS, *COARSER]
    return value[min(names, key=order.index)] if names else None


def _label_by_folders(indices: Mapping[str, Index]) -> str:
    """Label by the first folders; returns why they are no classes, where they look as if they were."""

    def inside(index: Index, name: str) -> str:
        return name.removeprefix("./").removeprefix(f"{index.folder}/" if index.folder else "")

    real = [
        inside(index, name)
        for index in indices.values()
        for name, offset in zip(index.names, index.offsets, strict=True)
        if offset != BROKEN
    ]
    if class_names_of(real, "/") is None:
        return why_no_classes(real, "/")
    for index in indices.values():
        index.labels = [
            None if offset == BROKEN else inside(index, name).partition("/")[0]
            for name, offset in zip(index.names, index.offsets, strict=True)
        ]
    return ""


def _write_index(file: Path, index: Index) -> None:
    names, labels = (
        np.frombuffer(json.dumps(column).encode(), dtype=np.uint8) for column in (index.names, index.labels)
    )
    numbers = np.array([index.shards, index.offsets, index.sizes], dtype=np.int64)
    np.savez(file, names=names, labels=labels, numbers=numbers)


def _read_index(file: Path) -> Index | None:
    """The cached index, if it exists and is intact; reading compares the checksum of each entry."""
    try:
        with np.load(file) as arrays:
            shards, offsets, sizes = arrays["numbers"].tolist()
            labels, names = (json.loads(arrays[name].tobytes()) for name in ("labels", "names"))
    except Exception:  # a damaged file can raise nearly anything: zipfile's, zlib's, NumPy's ...
        return None
    columns = (shards, offsets, sizes, labels, names)
    return Index(*columns) if len({len(column) for column in columns}) == 1 else None
