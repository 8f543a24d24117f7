"""Images with a class for every pixel: from masks, from boxes, or as collages of labeled images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from patchcast.data.decode import UnreadableImageError, decode
from patchcast.data.folder import list_files
from patchcast.data.formats import is_image, open_image
from patchcast.data.seeds import mix_seed
from patchcast.data.split_names import by_split_name, match_split

IGNORED = 255
"""The class of pixels that count for nothing, as in Pascal VOC."""
Box = tuple[int | float, int | float, int | float, int | float, int]
"""Left, top, width and height in pixels, and the class."""
Pair = tuple[Float32[Tensor, "C H W"], Int64[Tensor, "H W"]]


@runtime_checkable
class HasLabels(Protocol):
    """Images with one class each."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class MaskedImages(Dataset[Pair]):
    """Images and masks of a folder, as a network sees them.

    Attributes:
        files: of images and, where there are masks, of those.
        boxes: of each image, (left, top, width, height, class) in pixels, where there are boxes instead.
        class_names: of the classes, by number; empty where nothing names them.
    """

    files: Sequence[tuple[Path, Path | None]]
    boxes: Mapping[Path, Sequence[Box]]
    class_names: Sequence[str]
    channels: int
    transform: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    squash: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def read(self, place: int) -> tuple[Tensor, Int64[Tensor, "H W"]]:
        """An image as it is in its file, and its mask.

        Raises:
            ValueError: if one of them cannot be read, or they are of different sizes.
        """
        file, mask_file = self.files[place]
        try:
            with file.open("rb") as opened:
                image = decode(opened, self.channels)
        except UnreadableImageError as problem:
            raise ValueError(f"{file} cannot be read: {problem}") from problem
        size = (image.shape[-2], image.shape[-1])
        mask = mask_of_boxes(size, self.boxes[file]) if mask_file is None else read_mask(mask_file)
        if mask.shape != size:
            raise ValueError(f"{mask_file} is {tuple(mask.shape)}, and its image {size}: a mask has its image's size")
        return image, mask

    def __getitem__(self, place: int) -> Pair:
        image, mask = self.read(place)
        return self.transform(image), fit_mask(mask, self.size, squash=self.squash)


def open_masked(
    folder: Path,
    *,
    split: str,
    channels: int,
    transform: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    squash: bool = False,
) -> MaskedImages:
    """A folder with `images` and `masks` in it, of the same names; or `images` and `boxes.json` in COCO's format.

    Masks are PNG with the class of each pixel as its number (palettes too); 255 counts for nothing. Inside a box the
    class is the box's place among COCO's categories, counted from 1, the smaller box before the larger; outside it is
    0. That is coarser than a mask: a box holds what is around its object as well.

    Args:
        split: a folder inside `images` and `masks` (`images/train/1.jpg`, `masks/train/1.png`); where there is none,
            "train" is the first four fifths of the images by name, and "test" the rest.
        transform, size: what a network sees of an image, and its (height, width), to which the mask is fitted.
        squash: whether `transform` resizes the whole image; otherwise it cuts the center out, and so for the mask.
    Raises:
        ValueError: if there is no such folder, or an image has no mask.
    """
    images, masks, boxes = folder / "images", folder / "masks", folder / "boxes.json"
    if not images.is_dir() or not (masks.is_dir() or boxes.is_file()):
        raise ValueError(f"{folder} needs a folder 'images', and next to it a folder 'masks' or a file 'boxes.json'")
    names = sorted(name for name in list_files(images) if is_image(name))
    own = by_split_name(dict.fromkeys(name.split("/")[0] for name in names if "/" in name), str(images))
    if own:
        order = (split, "test", "validation", "val") if split == "test" else (split,)
        matching = next((match for match in (match_split(name, own) for name in order) if match is not None), None)
        chosen = [name for name in names if matching is not None and name.startswith(f"{own[matching]}/")]
    else:
        first = round(0.8 * len(names))
        chosen = names[:first] if split == "train" else names[first:]
    if not chosen:
        raise ValueError(f"{images} has no images of the {split} split")
    if masks.is_dir():
        files: list[tuple[Path, Path | None]] = [(images / name, _mask_file(masks, name)) for name in chosen]
        return MaskedImages(files, {}, [], channels, transform, size, squash)
    by_name, classes = _read_boxes(boxes)
    listed = {images / name: by_name.get(name, by_name.get(Path(name).name, [])) for name in chosen}
    return MaskedImages([(file, None) for file in listed], listed, classes, channels, transform, size, squash)


@dataclass(frozen=True)
class Collages(Dataset[Pair]):
    """Pictures put together of several images of other classes, so that the class of every pixel is known.

    The pixels and the classes are real, and the arrangement is not: borders are those of random cells, which no object
    has. It asks whether a unit's feature tells what is in the unit and not what is around it.

    >>> dark, bright = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    >>> image, mask = Collages([(dark, 0), (bright, 1)], count=1, pieces=2)[0]
    >>> torch.equal(image[0].long(), mask)
    True

    Args:
        images: as a network sees them, of one size.
        count: how many; each is another draw.
        pieces: images in each, of as many classes as there are.
        seed: of the draws.
    """

    images: HasLabels
    count: int
    pieces: int = 3
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Pair:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, place) % 2**63)
        drawn: dict[int, Tensor] = {}
        for index in torch.randint(len(self.images), (10 * self.pieces,), generator=generator).tolist():
            image, label = self.images[index]
            drawn.setdefault(int(label), image)
            if len(drawn) == self.pieces:
                break
        images, classes = torch.stack(list(drawn.values())), torch.tensor(list(drawn))
        height, width = images.shape[-2:]
        centers = torch.rand(len(images), 2, generator=generator) * torch.tensor([height, width])
        rows, cols = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        nearest = (torch.stack([rows, cols], dim=-1)[:, :, None] - centers).square().sum(dim=-1).argmin(dim=-1)
        return images.gather(0, nearest.expand(1, *images.shape[1:]))[0], classes[nearest]


def read_mask(file: Path) -> Int64[Tensor, "H W"]:
    """The class of each pixel of a PNG.

    Raises:
        ValueError: if it cannot be read, or has colors where classes are expected.
    """
    try:
        with open_image(file) as opened:
            if opened.mode not in ("P", "L", "I", "I;16", "1"):
                raise ValueError(f"{file} is {opened.mode}: a mask has one channel, the number of each pixel's class")
            return torch.from_numpy(np.array(opened).astype(np.int64))
    except OSError as problem:
        raise ValueError(f"{file} cannot be read: {problem}") from problem


def mask_of_boxes(size: tuple[int, int], boxes: Sequence[Box]) -> Int64[Tensor, "H W"]:
    """The class of the smallest box around each pixel, and 0 where there is none.

    >>> mask_of_boxes((2, 4), [(0, 0, 4, 2, 1), (2, 0, 1, 1, 7)]).tolist()
    [[1, 1, 7, 1], [1, 1, 1, 1]]
    """
    mask = torch.zeros(size, dtype=torch.int64)
    for left, top, width, height, label in sorted(boxes, key=lambda box: -box[2] * box[3]):
        rows, cols = (round(top), round(top + height)), (round(left), round(left + width))
        mask[max(0, rows[0]) : max(0, rows[1]), max(0, cols[0]) : max(0, cols[1])] = label
    return mask


def fit_mask(mask: Int64[Tensor, "H W"], size: tuple[int, int], *, squash: bool = False) -> Int64[Tensor, "h w"]:
    """A mask cut and resized as `Evaluate` does with its image; each pixel takes the class of the nearest.

    >>> fit_mask(torch.tensor([[1, 2, 3, 4]]), (1, 2)).tolist()
    [[2, 3]]
    """
    (rows, cols), (height, width) = mask.shape, size
    cover = max(height / rows, width / cols)
    whole = size if squash else (max(height, round(rows * cover)), max(width, round(cols * cover)))
    large = F.interpolate(mask[None, None].double(), whole, mode="nearest-exact")[0, 0].long()
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return large[top : top + height, left : left + width]


def _mask_file(masks: Path, name: str) -> Path:
    file = (masks / name).with_suffix(".png")
    if not file.exists():
        raise ValueError(f"the image {name} has no mask: there is no {file}")
    return file


def _read_boxes(file: Path) -> tuple[dict[str, list[Box]], list[str]]:
    """Boxes by the file name of their image, and the names of the classes."""
    try:
        found: Any = json.loads(file.read_text())
        places = {entry["id"]: place for place, entry in enumerate(found["categories"], start=1)}
        names = {entry["id"]: entry["file_name"] for entry in found["images"]}
        boxes: dict[str, list[Box]] = {}
        for entry in found["annotations"]:
            left, top, width, height = entry["bbox"]
            box = (left, top, width, height, places[entry["category_id"]])
            boxes.setdefault(names[entry["image_id"]], []).append(box)
        return boxes, ["background", *(entry["name"] for entry in found["categories"])]
    except (KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{file} is not in COCO's format (images, annotations, categories): {problem!r}") from problem
