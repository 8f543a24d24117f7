"""Decoding JPEGs: ours against torchvision's `decode_jpeg`, the same files, in turns in one run, on one core.

    python benchmarks/input.py FOLDER

Three ways to the same uint8 RGB tensor: `patchcast.data.decode`, which every source uses; torchvision's `decode_jpeg`
of the file's bytes; and its `decode_image`, which finds the format out first. Then three ways to what a model sees, a
random crop of 224 pixels, flipped and normalized: ours, torchvision's transforms (v2) on tensors, and its usual
pipeline on PIL images, as in every reference script. Times are CPU times, which other work on the machine disturbs
least; the ratio is that of the fastest rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image, decode_jpeg
from torchvision.transforms import v2

from patchcast.data import Augment, open_images
from patchcast.data.decode import decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timed(function: Callable[[bytes], Tensor], files: list[bytes]) -> float:
    start = time.process_time()
    for file in files:
        function(file)
    return len(files) / (time.process_time() - start)


def as_tensor(file: bytes) -> Tensor:
    return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="any source whose images are JPEGs; default: scikit-learn's photos")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = open_images(args.source or str(Path(sklearn.datasets.__file__).parent / "images"), channels=3)
    files = [images.store.open(position).read() for position in range(min(args.images, len(images)))]
    files = [file for file in files if file.startswith(b"\xff\xd8")]
    print(f"{len(files)} JPEGs of {images.name}, mostly {images.typical_size[0]}x{images.typical_size[1]}")
    files *= -(-args.images // len(files))
    augment = Augment((224, 224), (0.2, 1.0), True, MEAN, STD)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    pil = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    jpeg = {
        "patchcast.data.decode": lambda file: decode(BytesIO(file), 3),
        "torchvision decode_jpeg": lambda file: decode_jpeg(as_tensor(file), ImageReadMode.RGB),
        "torchvision decode_image": lambda file: decode_image(as_tensor(file), ImageReadMode.RGB),
    }
    whole = {
        "ours, decoded and augmented": lambda file: augment(decode(BytesIO(file), 3), 1),
        "torchvision, decoded and augmented": lambda file: theirs(decode_jpeg(as_tensor(file), ImageReadMode.RGB)),
        "torchvision on PIL images": lambda file: pil(Image.open(BytesIO(file)).convert("RGB")),
    }
    first = decode(BytesIO(files[0]), 3).int() - decode_jpeg(as_tensor(files[0]), ImageReadMode.RGB).int()
    print(f"largest difference of a pixel: {int(first.abs().max())}")
    for group in (jpeg, whole):
        rates: dict[str, list[float]] = {name: [] for name in group}
        for _ in range(args.rounds):
            for name, function in group.items():
                rates[name].append(timed(function, files))
        ours = max(next(iter(rates.values())))
        for name, found in rates.items():
            print(f"{name:36} {max(found):7.0f} images/s on one core; ours is {ours / max(found):.2f} times that")


if __name__ == "__main__":
    main()
