"""The augmentation of `Augment` for whole batches on their device, such as a GPU, while workers only decode and crop.

Crops and flips are drawn from (seed, epoch, index) as usual. Resizing with antialiasing is linear in the rows and in
the columns of an image, so resizing a batch of crops of different sizes takes two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from patchcast.data.transforms import Augment, Cut, ImagePixels, resize

LARGEST_CROP = 16
"""Times the area of what comes out up to which crops are handed on: larger ones would take more memory than time."""
VALUES_AT_ONCE = 2**24
"""Values of crops that are resized at once: small images all together, as a GPU wants them, and few large ones."""


class Cuts(NamedTuple):
    """A batch of crops in one tensor, each in its upper left corner.

    Attributes:
        sizes: rows and columns of each.
        is_flipped: True where it is to be mirrored.
        size: (height, width) to which `finish` resizes them.
    """

    pixels: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]
    is_flipped: Bool[Tensor, " B"]
    size: tuple[int, int]


class Cutter:
    """The part of an augmentation that workers do: they crop and decide whether to flip; `finish` does the rest.

    >>> augment = Augment((32, 32), scale=(0.2, 1.0), flip=True, mean=(0.5,), std=(0.5,))
    >>> image = torch.randint(256, (1, 48, 64), dtype=torch.uint8)
    >>> batch, labels = collate([(Cutter(augment)(image, seed), 0) for seed in range(4)])
    >>> every = torch.stack([augment(image, seed) for seed in range(4)])
    >>> bool(((finish(augment, batch) - every).abs() <= 2.01 / 255 / 0.5).all())  # a gray level or two, by rounding
    True
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __call__(self, image: ImagePixels, seed: int) -> Cut:
        cut = self.augment.cut(image, seed)
        height, width = self.augment.size
        if cut.pixels.shape[-2] * cut.pixels.shape[-1] > LARGEST_CROP * height * width:
            return cut._replace(pixels=resize(cut.pixels, self.augment.size))
        return cut


class EncodedCut(NamedTuple):
    """An image file that is not decoded yet, and the crop of it.

    Attributes:
        content: the bytes of the file; None where they are in an `EncodedCuts`.
        whole: height and width of the image.
        box: (top, left, height, width) of the crop.
        key: by which a `TrainSet` gives the same crop.
    """

    content: UInt8[Tensor, " bytes"] | None
    whole: tuple[int, int]
    box: tuple[int, int, int, int]
    is_flipped: bool
    size: tuple[int, int]
    key: tuple[int, int]

    def of(self, image: UInt8[Tensor, "C H W"]) -> Cut:
        """The crop, of the decoded image."""
        top, left, height, width = self.box
        return Cut(image[:, top : top + height, left : left + width], self.is_flipped, self.size)


@dataclass(frozen=True)
class EncodedCuts:
    """A batch in which some images are files, and others crops.

    The files are in one tensor, one after the other, of these lengths: a loader's worker hands over each tensor as a
    file of its own.
    """

    contents: UInt8[Tensor, " bytes"]
    lengths: Sequence[int]
    cuts: Sequence[Cut | EncodedCut]

    def pin_memory(self) -> EncodedCuts:
        """Itself: decoders read files on the CPU."""
        return self

    def files(self) -> list[UInt8[Tensor, " bytes"]]:
        return list(self.contents.split(list(self.lengths)))


def collate(examples: list[tuple[Any, ...]]) -> Any:
    """Collate a batch: crops as `Cuts`, files as `EncodedCuts`, anything else as in torch."""
    encoded = [cut for cut, *_ in examples if isinstance(cut, EncodedCut)]
    files = [cut.content for cut in encoded if cut.content is not None]
    if files:
        cuts = [cut._replace(content=None) if isinstance(cut, EncodedCut) else cut for cut, *_ in examples]
        batch = EncodedCuts(torch.cat(files), [len(file) for file in files], cuts)
        return [batch, *default_collate([example[1:] for example in examples])]
    if not isinstance(examples[0][0], Cut):
        return default_collate(examples)
    return [join([example[0] for example in examples]), *default_collate([example[1:] for example in examples])]


def join(cuts: Sequence[Cut]) -> Cuts:
    """Crops in one tensor, on their device."""
    sizes = torch.tensor([cut.pixels.shape[-2:] for cut in cuts])
    height, width = sizes.amax(dim=0).tolist()
    first = cuts[0].pixels
    pixels = first.new_zeros(len(cuts), len(first), height, width)
    for row, cut in zip(pixels, cuts, strict=True):
        row[:, : cut.pixels.shape[-2], : cut.pixels.shape[-1]] = cut.pixels
    return Cuts(pixels, sizes, torch.tensor([cut.is_flipped for cut in cuts]), cuts[0].size)


def finish(augment: Augment, cuts: Cuts) -> Float32[Tensor, "B C h w"]:
    """Resize, flip and normalize, on the device of the crops."""
    at_once = max(1, VALUES_AT_ONCE // cuts.pixels[0].numel())
    chunks = zip(*(part.split(at_once) for part in (cuts.pixels, cuts.sizes, cuts.is_flipped)), strict=True)
    done = [_resize(Cuts(pixels, sizes, is_flipped, cuts.size)) for pixels, sizes, is_flipped in chunks]
    return torch.cat([augment.normalize.batch(images) for images in done])


def _resize(cuts: Cuts) -> UInt8[Tensor, "B C h w"] | Float32[Tensor, "B C h w"]:
    down = resampling(cuts.sizes[:, 0], cuts.pixels.shape[-2], cuts.size[0])
    across = resampling(cuts.sizes[:, 1], cuts.pixels.shape[-1], cuts.size[1])
    across = torch.where(cuts.is_flipped[:, None, None], across.flip(1), across)
    is_bytes = cuts.pixels.dtype == torch.uint8
    x = cuts.pixels.float()
    x = x @ across.transpose(1, 2)[:, None]
    if is_bytes:  # Pillow and torch round in between
        x = x.add_(0.5).floor_().clamp_(0, 255)
    x = down[:, None] @ x
    return x.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8) if is_bytes else x


def resampling(sizes: Int[Tensor, " B"], longest: int, size: int) -> Float[Tensor, "B size longest"]:
    """Weights for resampling a line to `size` points: bicubic, with antialiasing.

    As Pillow does it, and `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`.

    >>> resampling(torch.tensor([2, 3]), 3, 2).shape, resampling(torch.tensor([2]), 2, 2)[0].tolist()
    (torch.Size([2, 2, 3]), [[1.0, 0.0], [0.0, 1.0]])

    Args:
        sizes: lengths of the lines.
        longest: length of the tensor that contains them.
    """
    scale = (sizes.double() / size)[:, None, None]
    width = scale.clamp(min=1.0)  # of the filter
    center = scale * (torch.arange(size, device=sizes.device)[None, :, None] + 0.5)
    place = torch.arange(longest, device=sizes.device)[None, None, :]
    t = ((place + 0.5 - center) / width).abs()
    near = (1.5 * t - 2.5) * t * t + 1  # Keys's cubic with a = -0.5
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weight = weight.masked_fill(place >= sizes[:, None, None], 0.0)
    return (weight / weight.sum(dim=2, keepdim=True)).float()
