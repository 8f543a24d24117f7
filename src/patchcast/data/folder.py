"""A folder of image files, flat or nested, with or without class folders."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from patchcast.data.decode import ImageFile
from patchcast.data.files import SPLIT_NAMES
from patchcast.data.names import Names
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_whole

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy",)
"""Images too, where there are no others: beside photographs they are most likely features or masks."""
INDEX_FROM = 50_000
"""Folders of at least this many files are listed once, and the list is kept in the user's cache folder."""
SETTLED_SECONDS = 2
"""A folder that changed within this time before it was listed may change again without a newer time of change."""


class FolderStore(Store):
    """Image files below a root, in the order of their names.

    Class folders give the labels: when no image lies in `root` itself and at least two of its sub-folders hold
    images, the name of that first sub-folder is the class, however deep the image lies.
    """

    def __init__(self, root: Path, files: list[str], class_names: list[str] | None) -> None:
        self.root = root
        self.files = Names(files)  # relative to the root, with the system's separator
        self.class_names = class_names
        if class_names is not None:
            number = {name: label for label, name in enumerate(class_names)}
            self.labels = np.array([number[file.partition(os.sep)[0]] for file in files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, position: int) -> ImageFile:
        return open(self.root / self.files[position], "rb")

    def path(self, position: int) -> str:
        return str(self.root / self.files[position])


def list_files(root: Path) -> list[str]:
    """Every file below `root`, relative to it, sorted; hidden files and folders (`.cache`, `._photo.jpg`) left out.

    Links are followed. Each real folder is listed once, so a link to a folder above ends there.

    From 50,000 files on the list is kept in the user's cache folder, and is found again until a folder below `root`
    has another time of change: one look at each folder instead of one at each file.
    """
    kept = cache_file(["folder", str(root.resolve())], ".index.npz")
    files = _kept_list(kept, root)
    if files is None:
        began = time.time_ns()
        files, changed = _walk(root)
        if len(files) >= INDEX_FROM and began - max(changed.values()) > SETTLED_SECONDS * 10**9:
            with contextlib.suppress(OSError):  # a home that cannot be written to costs the time to list it again
                write_whole(kept, lambda unfinished: _keep_list(unfinished, files, changed))
    return files


def _walk(root: Path) -> tuple[list[str], dict[str, int]]:
    """The files, and the time of change of every folder."""
    files: list[str] = []
    changed: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        changed[inside] = status.st_mtime_ns
        files += [name if inside == "." else os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(files), changed


def _keep_list(file: Path, files: list[str], changed: dict[str, int]) -> None:
    times = np.array(list(changed.values()))
    np.savez(file, files=_joined(files), folders=_joined(list(changed)), changed=times)


def _kept_list(file: Path, root: Path) -> list[str] | None:
    """What was kept, if it is whole and no folder has changed since."""
    try:
        with np.load(file) as kept:
            folders, changed = _split(kept["folders"]), kept["changed"].tolist()
            is_as_it_was = [os.stat(root / folder).st_mtime_ns for folder in folders] == changed
            return _split(kept["files"]) if is_as_it_was else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _joined(names: list[str]) -> np.ndarray:
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), dtype=np.uint8)  # no name holds a null byte


def _split(joined: np.ndarray) -> list[str]:
    return list(map(os.fsdecode, joined.tobytes().split(b"\0")))


def pick_images(files: list[str]) -> list[str]:
    """Those that are images by their names.

    >>> pick_images(["a.jpg", "a.npy", "a.txt"]), pick_images(["a.npy", "a.txt"])
    (['a.jpg'], ['a.npy'])
    """
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    return images or [file for file in files if file.lower().endswith(ARRAYS)]


def folder_splits(root: Path, files: list[str]) -> Splits:
    """The splits of a folder: `train` with its neighbours `test`, `val` or `validation`, or one called `train`.

    Args:
        files: what `list_files(root)` found.
    Raises:
        ValueError: if none of them is an image; says what there is.
    """
    images = pick_images(files)
    if not images:
        kinds = Counter(Path(file).suffix.lower() or "without extension" for file in files).most_common(3)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing"
        raise ValueError(
            f"no images under {root}: looked for {' '.join(EXTENSIONS + ARRAYS)} .parquet .tar; found {found}"
        )

    by_child: dict[str, list[str]] = {}
    for image in images:
        child, separator, rest = image.partition(os.sep)
        by_child.setdefault(child if separator else "", []).append(rest or image)
    parts = {name: (root / name, by_child[name]) for name in SPLIT_NAMES if name in by_child}
    if "train" not in parts:
        parts = {"train": (root, images)}
    classes = class_names_of([image for _, images in parts.values() for image in images], os.sep)
    return {name: partial(FolderStore, where, images, classes) for name, (where, images) in parts.items()}


def class_names_of(images: list[str], separator: str) -> list[str] | None:
    """The first folders, if there are two or more and no image lies beside them; of all splits together, so that a
    label means the same in each."""
    images = [image.removeprefix(f".{separator}") for image in images]  # tar files are often made from inside: ./cat/1
    if any(separator not in image for image in images):
        return None
    names = sorted({image.partition(separator)[0] for image in images})
    return names if len(names) > 1 else None
