"""Single files, folders and any other sources, as the images that one command reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchcast.data.decode import ImageFile
from patchcast.data.formats import ARRAYS, is_image
from patchcast.data.images import Images, find_splits, open_split
from patchcast.data.names import Names, printable
from patchcast.data.stores import Store


class FilesStore(Store):
    """Image files that were named one by one; without labels."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = Names(files)

    def __len__(self) -> int:
        return len(self.files)

    def open(self, position: int) -> ImageFile:
        return open(self.files[position], "rb")

    def path(self, position: int) -> str:
        return printable(self.files[position])


def open_listed(sources: Sequence[str], *, channels: int | None = None, split: str | None = None) -> list[Images]:
    """Open image files and sources, in their order; files that stand next to one another are one data set.

    Args:
        channels: to convert every image to.
        split: of the sources; None: all their splits.
    Raises:
        ValueError: if a source is not there, or none of its images can be read.
    """
    parts: list[Images] = []
    files: list[str] = []

    def gather() -> None:
        if files:
            name = files[0] if len(files) == 1 else f"{len(files)} files"
            parts.append(Images(FilesStore(files), name=name, split="train", splits=["train"], channels=channels))
            files.clear()

    for source in sources:
        path = Path(source).expanduser()
        if not path.is_dir() and (is_image(source) or source.lower().endswith(ARRAYS)):
            files.append(str(path))
            continue
        gather()
        splits = find_splits(source)
        for name in splits if split is None else [split]:
            parts.append(open_split(splits, source, split=name, channels=channels))
    gather()
    return parts
