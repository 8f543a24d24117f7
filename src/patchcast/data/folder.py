"""A folder of image files, flat or nested, with or without class folders."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from patchcast.data.decode import ImageFile
from patchcast.data.stores import Splits, Store

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_NAMES = ("train", "test", "val", "validation")


class FolderStore(Store):
    """Image files below a root, in the order of their names.

    Class folders give the labels: when no image lies in `root` itself and at least two of its sub-folders hold
    images, the name of that first sub-folder is the class, however deep the image lies.
    """

    def __init__(self, root: Path, files: list[str], class_names: list[str] | None) -> None:
        self.root = root
        self.files = files  # relative to the root, with the system's separator
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
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        files += [name if inside == "." else os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(files)


def folder_splits(root: Path, files: list[str]) -> Splits:
    """The splits of a folder: `train` with its neighbours `test`, `val` or `validation`, or one called `train`.

    Args:
        files: what `list_files(root)` found.
    Raises:
        ValueError: if none of them is an image; says what there is.
    """
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    if not images:
        kinds = Counter(Path(file).suffix.lower() or "without extension" for file in files).most_common(3)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds) or "nothing"
        raise ValueError(f"no images under {root}: looked for {' '.join(EXTENSIONS)} .parquet; found {found}")

    by_child: dict[str, list[str]] = {}
    for image in images:
        child, separator, rest = image.partition(os.sep)
        by_child.setdefault(child if separator else "", []).append(rest or image)
    parts = {name: (root / name, by_child[name]) for name in SPLIT_NAMES if name in by_child}
    if "train" not in parts:
        parts = {"train": (root, images)}
    classes = _class_names([image for _, images in parts.values() for image in images])
    return {name: partial(FolderStore, where, images, classes) for name, (where, images) in parts.items()}


def _class_names(images: list[str]) -> list[str] | None:
    """Of all splits together, so that a label means the same in each."""
    if any(os.sep not in image for image in images):
        return None
    names = sorted({image.partition(os.sep)[0] for image in images})
    return names if len(names) > 1 else None
