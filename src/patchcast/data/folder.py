"""A folder of image files, flat or nested, with or without class folders."""

from __future__ import annotations

import errno
import os
import stat
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from patchcast.data.decode import ImageFile
from patchcast.data.formats import ARRAYS, extensions, is_image
from patchcast.data.names import Names, printable
from patchcast.data.split_folders import arrange
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_cache

INDEX_FROM = 50_000
"""Folders of at least this many files are listed once, and the list is cached in the user's cache folder."""
MOST_LINKS = 4
"""Linked folders on the way to a file; folders that are all linked into each other would be listed without end."""
SETTLED_SECONDS = 2
"""A folder that changed within this time before it was listed may change again without a newer time of change."""


class FolderStore(Store):
    """Image files below a root, in the order of their names.

    Class folders give the labels: if no image is in `root` itself and at least two of its sub-folders contain images,
    the name of the first sub-folder is the class, at any depth.
    """

    def __init__(self, root: Path, files: list[str], class_names: list[str] | None, no_labels: str = "") -> None:
        self.root = root
        self.no_labels = no_labels
        self.files = Names(files)  # relative to the root, with the system's separator
        self.class_names = None if class_names is None else [printable(name) for name in class_names]
        if class_names is not None:
            number = {name: label for label, name in enumerate(class_names)}
            self.labels = np.array([number[file.partition(os.sep)[0]] for file in files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, position: int) -> ImageFile:
        return open(self.root / self.files[position], "rb", opener=_open_regular)

    def path(self, position: int) -> str:
        return printable(str(self.root / self.files[position]))


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; without waiting, as a named pipe would wait for its writer for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def list_files(root: Path) -> list[str]:
    """Every file below `root`, relative to it, sorted; hidden files and folders (`.cache`, `._photo.jpg`) left out.

    Links are followed, so that a link to another split or class holds its images too; one to a folder that it lies in
    is not. A folder that cannot be listed is named in a warning.

    From 50,000 files on the list is cached in the user's cache folder, until a folder below `root` has another time of
    change: one look at each folder instead of one at each file.
    """
    cached = cache_file(["folder", str(root.resolve())], ".index.npz")
    files = _read_list(cached, root)
    if files is None:
        began = time.time_ns()
        files, changed, problems = _walk(root)
        if problems and not changed:
            raise ValueError(f"a folder cannot be listed: {problems[0]}")
        if problems:
            more = f", and {len(problems) - 1} more" if problems[1:] else ""
            warnings.warn(f"passed over a folder that cannot be listed: {problems[0]}{more}", stacklevel=2)
        is_settled = began - max(changed.values(), default=0) > SETTLED_SECONDS * 10**9
        if len(files) >= INDEX_FROM and is_settled and not problems:
            write_cache(cached, lambda unfinished: _write_list(unfinished, files, changed))
    return files


def _walk(root: Path) -> tuple[list[str], dict[str, int], list[str]]:
    """The files, the time of change of every folder, and the folders that cannot be listed."""
    files: list[str] = []
    changed: dict[str, int] = {}
    problems: list[OSError] = []
    # For every folder to visit, the real folders on its path, identified by (device, inode).
    through: dict[str, tuple[tuple[int, int], ...]] = {str(root): ()}
    links: dict[str, int] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=problems.append):
        status = os.stat(folder)
        above, here = through.pop(folder), (status.st_dev, status.st_ino)
        links[folder] = links.get(os.path.dirname(folder), 0) + os.path.islink(folder)
        if here in above or links[folder] > MOST_LINKS:
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        through.update((os.path.join(folder, name), (*above, here)) for name in subfolders)
        inside = os.path.relpath(folder, root)
        changed[inside] = status.st_mtime_ns
        files += [name if inside == "." else os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(files), changed, [f"{problem.filename}: {problem.strerror}" for problem in problems]


def _write_list(file: Path, files: list[str], changed: dict[str, int]) -> None:
    times = np.array(list(changed.values()))
    np.savez(file, files=_joined(files), folders=_joined(list(changed)), changed=times)


def _read_list(file: Path, root: Path) -> list[str] | None:
    """The cached list, if it is whole and no folder has changed since. Each entry of the file has a checksum, which
    reading compares."""
    try:
        with np.load(file) as arrays:
            folders, changed = _split(arrays["folders"]), arrays["changed"].tolist()
            is_as_it_was = [os.stat(root / folder).st_mtime_ns for folder in folders] == changed
            return _split(arrays["files"]) if is_as_it_was else None
    except Exception:  # a damaged file can raise nearly anything: zipfile's, zlib's, NumPy's ...
        return None


def _joined(names: list[str]) -> np.ndarray:
    return np.frombuffer(b"\0".join(map(os.fsencode, names)), dtype=np.uint8)  # no name holds a null byte


def _split(joined: np.ndarray) -> list[str]:
    return list(map(os.fsdecode, joined.tobytes().split(b"\0")))


def pick_images(files: list[str]) -> list[str]:
    """The files with names of images.

    >>> pick_images(["a.jpg", "a.npy", "a.txt"]), pick_images(["a.npy", "a.txt"])
    (['a.jpg'], ['a.npy'])
    """
    images = [file for file in files if is_image(file)]
    return images or [file for file in files if file.lower().endswith(ARRAYS)]


def kinds_of(files: Iterable[str]) -> str:
    """The number of files of each of the most common extensions.

    >>> kinds_of(["a.txt", "b.TXT", "README"])
    '2 .txt, 1 without extension'
    """
    counts = Counter(Path(file).suffix.lower() or "without extension" for file in files)
    rest = counts.total() - sum(count for _, count in counts.most_common(3))
    common = [f"{count} {kind}" for kind, count in counts.most_common(3)]
    return ", ".join(common + [f"{rest} others"] * bool(rest)) or "nothing"


def folder_splits(root: Path, files: list[str]) -> Splits:
    """The splits of a folder, by the names of its first sub-folders, or `train` if these are not splits.

    Ignored files are counted in one warning.

    Args:
        files: what `list_files(root)` found.
    Raises:
        ValueError: if none of them is an image, which says what there is; or if it is not clear what is a split.
    """
    images = pick_images(files)
    if not images:
        raise ValueError(
            f"no images under {root}: looked for {' '.join(extensions()[:4])} and all other formats that Pillow opens, "
            f"{' '.join(ARRAYS)} .parquet .tar; found {kinds_of(files)}"
        )
    if len(images) < len(files):
        others = kinds_of(sorted(set(files) - set(images)))
        warnings.warn(f"passed over files that are no images by their names: {others}", stacklevel=2)
    parts = arrange(images, os.sep, str(root))
    names = [image for part in parts.values() for image in part.names]
    classes, reason = class_names_of(names, os.sep), why_no_classes(names, os.sep)
    return {
        split: partial(FolderStore, root / part.folder, part.names, classes, reason) for split, part in parts.items()
    }


def class_names_of(images: list[str], separator: str) -> list[str] | None:
    """The first folders, if there are two or more and no image lies next to them; of all splits together, so that a
    label means the same in each."""
    if any(separator not in image for image in images):
        return None
    names = sorted({image.partition(separator)[0] for image in images})
    return names if len(names) > 1 else None


def why_no_classes(images: list[str], separator: str) -> str:
    """Why folders are no classes, where there are several; empty where they are, or there is one at most.

    >>> why_no_classes(["cat/1.png", "dog/2.png", "cover.png"], "/")
    "1 image lies next to the folders ('cover.png'), which are classes only where no image does"
    """
    loose = [image for image in images if separator not in image]
    if not loose or len({image.partition(separator)[0] for image in images if separator in image}) < 2:
        return ""
    lie = "1 image lies" if len(loose) == 1 else f"{len(loose):,} images lie"
    return f"{lie} next to the folders ({printable(loose[0])!r}), which are classes only where no image does"
