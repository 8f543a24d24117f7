"""Read a whole source once and report what is in it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from patchcast.data.columns import Columns
from patchcast.data.decode import UnreadableImageError
from patchcast.data.images import Images, Unreadable, evenly_spaced, find_splits, open_split

ImageSize = tuple[int, int]
FEW_IMAGES = 2000
"""Number of images below which one process is as fast as several, which have to start first."""


@dataclass(frozen=True)
class Report:
    """What `check` found in one split; `str(report)` is for people.

    Attributes:
        name: of the source.
        split: of it.
        readable: how many images were decoded.
        unreadable: the others, in the source's order.
        sizes: how many images there are of each (height, width), the most common first.
        mean: of each channel over all pixels, white being 1.
        std: likewise.
        labels: how many readable images there are of each class; those without one are under -1.
        class_names: what the labels mean, if the source says so.
    """

    name: str
    split: str
    readable: int
    unreadable: list[Unreadable]
    sizes: dict[ImageSize, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: dict[int, int]
    class_names: list[str] | None

    @property
    def size_range(self) -> tuple[ImageSize, ImageSize, ImageSize]:
        """The sizes of the images of the smallest, the median and the largest area; zeros if there are none."""
        if not self.sizes:
            return (0, 0), (0, 0), (0, 0)
        ordered = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        ends = np.cumsum([self.sizes[size] for size in ordered])
        return ordered[0], ordered[int(np.searchsorted(ends, (self.readable + 1) / 2))], ordered[-1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        sizes = [{"height": height, "width": width, "images": n} for (height, width), n in self.sizes.items()]
        return {**dataclasses.asdict(self), "sizes": sizes}

    def __str__(self) -> str:
        common = ", ".join(f"{count} of {height}x{width}" for (height, width), count in list(self.sizes.items())[:3])
        more = f" and {len(self.sizes) - 3} other sizes" if len(self.sizes) > 3 else ""
        head = f"{self.name} {self.split}: {self.readable} readable images ({common}{more}), "
        lines = [head + f"{len(self.unreadable)} unreadable"]
        return "\n".join(lines + [f"  {bad.path}: {bad.reason}" for bad in self.unreadable])


def check(images: Images, *, limit: int | None = None, workers: int = 0, progress: bool = False) -> Report:
    """Decode every image of a source once, those too that were skipped when it was opened.

    >>> from patchcast.data import open_images
    >>> report = check(open_images("digits", split="test"))
    >>> print(report)
    digits test: 360 readable images (360 of 8x8), 0 unreadable
    >>> report.labels[3], [round(value, 2) for value in report.mean]
    (37, [0.3])

    Args:
        limit: maximum number of images, evenly spaced.
        workers: processes that decode.
        progress: show a bar.
    """
    count = len(images.store)
    positions = list(range(count)) if limit is None else evenly_spaced(count, limit)
    looks = DataLoader(_Looks(images, positions), batch_size=32, num_workers=workers, collate_fn=list)
    unreadable, sizes, labels = [], Counter[ImageSize](), Counter[int]()
    pixels, total, squares = 0, np.zeros(images.channels), np.zeros(images.channels)
    bar = track(looks, f"reading {images.split}", console=Console(stderr=True), transient=True, disable=not progress)
    for found in itertools.chain.from_iterable(bar):
        if isinstance(found, Unreadable):
            unreadable.append(found)
            continue
        (height, width), sums, label = found
        sizes[height, width] += 1
        labels[label] += 1
        pixels += height * width
        total, squares = total + sums[0], squares + sums[1]
    mean = total / max(pixels, 1)
    variance = squares / max(pixels, 1) - mean**2
    std = np.sqrt(np.where(variance > 1e-12 * mean**2, variance, 0))  # what rounding leaves of a constant is none
    return Report(
        images.name,
        images.split,
        sizes.total(),
        unreadable,
        dict(sizes.most_common()),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        dict(sorted(labels.items())),
        images.class_names,
    )


def check_splits(
    source: str,
    splits: Sequence[str] | None = None,
    *,
    columns: Columns,
    max_pixels: int | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> list[tuple[Images, Report]]:
    """Open splits of a source, and report what is in each.

    Args:
        splits: None for all.
        limit: maximum number of images per split, evenly spaced.
        workers: processes that decode; None for one per core if there are many images.
    Raises:
        ValueError: if there is no such source or split, or nothing in it can be read.
    """
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped ")  # the reports name them
        listed = find_splits(source, columns)
        first = open_split(listed, source, split=splits[0] if splits else "train", max_pixels=max_pixels)
        for split in splits or first.splits:
            is_first, channels = split == first.split, first.channels
            images = (
                first if is_first else open_split(listed, source, split=split, channels=channels, max_pixels=max_pixels)
            )
            few = min(len(images.store), limit or len(images.store)) <= FEW_IMAGES
            processes = workers if workers is not None else 0 if few else os.cpu_count() or 0
            found.append((images, check(images, limit=limit, workers=processes, progress=progress)))
    return found


class _Looks(Dataset[Any]):
    """What `check` keeps of each image: its size, sums and sums of squares of each channel, and label; or why not."""

    def __init__(self, images: Images, positions: list[int]) -> None:
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        position, store = self.positions[index], self.images.store
        try:
            image = self.images.read(position)
        except UnreadableImageError as problem:
            return Unreadable(position, store.path(position), str(problem))
        values = image.flatten(1).double()
        values = values / 255 if image.dtype == torch.uint8 else values
        sums = np.stack([values.sum(1).numpy(), values.square().sum(1).numpy()])
        return tuple(image.shape[1:]), sums, -1 if store.labels is None else int(store.labels[position])
