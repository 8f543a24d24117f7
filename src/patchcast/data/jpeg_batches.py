"""Batches of JPEG files that a GPU decodes: workers read files and draw crops, and the pixels never exist on the CPU.

Only files that any decoder reads alike go there (`patchcast.data.decode.baseline_jpeg`); all others are decoded by the
workers as usual, with every check. A GPU's pixels may differ from the CPU's by some levels: JPEG leaves rounding, and
how colors are enlarged, to the decoder. On an H100 smooth pictures differed by 1.2 of 255 levels on average, 9 at most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from patchcast.data.batched import LARGEST_CROP, Cuts, Cutter, EncodedCut, EncodedCuts, join
from patchcast.data.decode import baseline_jpeg, pixel_limit
from patchcast.data.images import Images
from patchcast.data.sampling import EpochSampler, TrainSet
from patchcast.data.seeds import mix_seed
from patchcast.data.transforms import Cut

Decode = Callable[[list[Tensor], ImageReadMode, torch.device], list[Tensor]]
"""`torchvision.io.decode_jpeg`, of a list of files."""


class JPEGSet(Dataset[tuple[Tensor | Cut | EncodedCut, int]]):
    """Crops of images, by the keys of an `EpochSampler`, as a `TrainSet` with a `Cutter` gives them; but those of
    ordinary JPEGs are still encoded. `unpack` decodes them.

    >>> from patchcast.data import Augment, open_images
    >>> augment = Augment((16, 16), (0.4, 1.0), True, (0.3,), (0.4,))
    >>> [example] = [JPEGSet(open_images("digits"), Cutter(augment), seed=0)[0, 7]]
    >>> type(example[0]).__name__, example[1]  # not a JPEG
    ('Cut', 7)

    Args:
        decode: `torchvision.io.decode_jpeg`, or what takes its place in a test.
    """

    def __init__(self, images: Images, cutter: Cutter, seed: int, decode: Decode = decode_jpeg) -> None:
        self.images, self.augment, self.seed, self.decode = images, cutter.augment, seed, decode
        self.decoded = TrainSet(images, cutter, seed)

    def __len__(self) -> int:
        return len(self.decoded)

    def sampler(self, batch_size: int, *, place: dict[str, Any] | None = None, **how: int) -> EpochSampler:
        return self.decoded.sampler(batch_size, place=place, **how)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | Cut | EncodedCut, int]:
        epoch, index = key
        found = self.images.encoded(index)
        if found is None:
            return self.decoded[key]
        content, label = found
        with pixel_limit(self.images.max_pixels):
            whole = baseline_jpeg(content, self.images.channels)
        if whole is None:
            return self.decoded[key]
        box, is_flipped = self.augment.draw(*whole, mix_seed(self.seed, epoch, index))
        height, width = self.augment.size
        if box[2] * box[3] > LARGEST_CROP * height * width:  # it would take more memory than time
            return self.decoded[key]
        tensor = torch.frombuffer(content, dtype=torch.uint8)
        return EncodedCut(tensor, whole, box, is_flipped, self.augment.size, key), label

    def move(self, batch: list[Any], device: torch.device) -> list[Any]:
        """A batch (images, labels) on a device, with its files decoded there."""
        images, labels = batch
        return [self.unpack(images, device), labels.to(device, non_blocking=True)]

    def unpack(self, batch: Cuts | EncodedCuts, device: torch.device) -> Cuts:
        """Decode and crop on a device.

        If the decoder refuses a file, or gives it another size than its header says, all files of the batch are decoded
        on the CPU, which names the file if it is unreadable, and takes the next readable image in its place.
        """
        if isinstance(batch, Cuts):
            return _moved(batch, device)
        images = self._decode(batch, device)
        cuts = []
        for cut in batch.cuts:
            if isinstance(cut, EncodedCut):
                cut = self._again(cut) if images is None else cut.of(images.pop(0))
            cuts.append(cut._replace(pixels=cut.pixels.to(device, non_blocking=True)))
        return _moved(join(cuts), device)

    def _again(self, encoded: EncodedCut) -> Cut:
        augment = copy.copy(self.augment)
        augment.size = encoded.size  # of the phase that the batch is of
        cut = TrainSet(self.images, Cutter(augment), self.seed)[encoded.key][0]
        assert isinstance(cut, Cut)
        return cut

    def _decode(self, batch: EncodedCuts, device: torch.device) -> list[Tensor] | None:
        mode = ImageReadMode.GRAY if self.images.channels == 1 else ImageReadMode.RGB
        if device.type == "cuda":
            # The decoder's own stream writes into memory whose last use, on this stream, may not be over.
            torch.cuda.current_stream(device).synchronize()
        try:
            images = self.decode(batch.files(), mode, device)
        except RuntimeError:
            return None
        wanted = [(self.images.channels, *cut.whole) for cut in batch.cuts if isinstance(cut, EncodedCut)]
        return images if [tuple(image.shape) for image in images] == wanted else None


def _moved(cuts: Cuts, device: torch.device) -> Cuts:
    pixels, sizes, is_flipped = (part.to(device, non_blocking=True) for part in cuts[:3])
    return Cuts(pixels, sizes, is_flipped, cuts.size)
