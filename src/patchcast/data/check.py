"""Read a whole source once and say what is in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from patchcast.data.decode import UnreadableImageError
from patchcast.data.images import Images, Unreadable


@dataclass(frozen=True)
class Report:
    """What `check` found; `str(report)` is for people.

    Attributes:
        name: of the source and its split.
        readable: how many images were decoded.
        unreadable: the others, in the source's order.
        sizes: how many images there are of each (height, width), the most common first.
    """

    name: str
    readable: int
    unreadable: list[Unreadable]
    sizes: dict[tuple[int, int], int]

    def __str__(self) -> str:
        common = ", ".join(f"{count} of {height}x{width}" for (height, width), count in list(self.sizes.items())[:3])
        more = f" and {len(self.sizes) - 3} other sizes" if len(self.sizes) > 3 else ""
        lines = [f"{self.name}: {self.readable} readable images ({common}{more}), {len(self.unreadable)} unreadable"]
        return "\n".join(lines + [f"  {bad.path}: {bad.reason}" for bad in self.unreadable])


def check(images: Images) -> Report:
    """Decode every image of a source once, those too that were skipped when it was opened.

    >>> from patchcast.data import open_images
    >>> print(check(open_images("digits", split="test")))
    digits test: 360 readable images (360 of 8x8), 0 unreadable
    """
    unreadable, sizes = [], Counter[tuple[int, int]]()
    for position in range(len(images.store)):
        try:
            height, width = images.read(position).shape[1:]
        except UnreadableImageError as problem:
            unreadable.append(Unreadable(position, images.store.path(position), str(problem)))
        else:
            sizes[height, width] += 1
    return Report(f"{images.name} {images.split}", sizes.total(), unreadable, dict(sizes.most_common()))
