"""Images that belong to other images, such as masks and depth maps, which are not used for training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

MASKS = {
    "mask", "masks", "seg", "segm", "segmentation", "segmentations", "segmentationclass", "segmentationobject",
    "semantic", "instance", "instances", "label", "labels", "annotation", "annotations", "depth", "normal",
    "normals", "gt", "target", "trimap", "trimaps", "alpha", "matte", "edges",
}  # fmt: skip
IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photos", "rgb", "input", "color", "colour"}
PREFERRED = ("jpg", "jpeg", "webp", "png")
"""Of several files of one sample, the photograph is most likely of the first of these formats."""
SAMPLE_NAME = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]*)$")


def image_folder(folders: Collection[str]) -> str | None:
    """The folder of images, if all others hold masks of them.

    >>> image_folder(["images", "masks"]), image_folder(["JPEGImages", "SegmentationClass"]), image_folder(["a", "gt"])
    ('images', 'JPEGImages', None)
    """
    images = [folder for folder in folders if folder.casefold() in IMAGES]
    others = [folder for folder in folders if folder.casefold() not in IMAGES]
    is_masked = bool(others) and all(folder.casefold() in MASKS for folder in others)
    return images[0] if len(images) == 1 and is_masked else None


def sample_of(name: str) -> tuple[str, str]:
    """WebDataset's parts of a name: the sample, up to the first point of its last part, and what this file is of it.

    >>> sample_of("train/0001.seg.png")
    ('train/0001', 'seg.png')
    """
    match = SAMPLE_NAME.match(name)
    return (match[1], match[2].lower()) if match else (name, "")


def second_images(names: Sequence[str]) -> list[int]:
    """Places of images that stand in a sample next to the one that is trained on.

    A kind of file (`seg.png`) is second if most of its samples hold one of the first kind, and its name says so or is
    longer: `seg.png` and `mask.png` come after `png`, and `png` after `jpg`.

    >>> second_images(["1.jpg", "1.seg.png", "2.jpg", "2.seg.png"]), second_images(["a.01.png", "a.02.png"])
    ([1, 3], [])
    """
    parts = [sample_of(name) for name in names]
    kinds = Counter(kind for _, kind in parts)
    if len(kinds) < 2 or len(kinds) * 2 > len(names):
        return []  # one kind, or names with points in them that are no samples
    first = min(kinds, key=_rank)
    samples: dict[str, set[str]] = defaultdict(set)
    for sample, kind in parts:
        samples[kind].add(sample)
    second = {
        kind
        for kind in kinds
        if _rank(kind) > _rank(first) and 2 * len(samples[kind] & samples[first]) > len(samples[kind])
    }
    return [place for place, (_, kind) in enumerate(parts) if kind in second]


def _rank(kind: str) -> tuple[bool, bool, int, int]:
    words = set(re.split(r"[-_.]", kind))
    ending = kind.rpartition(".")[2]
    place = PREFERRED.index(ending) if ending in PREFERRED else len(PREFERRED)
    return bool(words & MASKS), not words & IMAGES and "." in kind, kind.count("."), place
