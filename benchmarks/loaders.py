"""Loaders side by side: images per second of one core, from files to batches as a network takes them.

    python benchmarks/loaders.py FOLDER

All give batches of random resized crops of 224 pixels, half of them mirrored, normalized float32. Ours reads the same
images from a JPEG folder, from parquet, and packed (`--packed 256`); torchvision's `ImageFolder` in a `DataLoader` with
PIL transforms, and with v2 transforms on tensors; webdataset from a tar file with the same PIL transforms. The mark is
what FFCV does, in plain numpy: pixels of a memory-mapped file, sliced, resized without antialiasing by OpenCV (its
INTER_AREA) and normalized by torch; it needs `pip install opencv-python-headless`, and is left out without. "Cut
only" is what is left for a core where a GPU resizes and normalizes (`patchcast.data.Cutter`). Sources as small as these
are otherwise decoded into memory when a run begins; here they stay encoded, as those do that do not fit.

By turns in one process without workers, in processor time, which other work on the machine disturbs least; a turn is
some batches of each. A row's rate is the median over turns, its ratio that of its rate by ours from JPEG files.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn.datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from patchcast.data import Augment, Cutter, EpochSampler, Images, TrainSet, loader, open_images
from patchcast.data.packed import PackedImages, pack_images
from patchcast.data.sampling import Examples
from patchcast.heap import keep_freed_memory
from patchcast.runs.speed import processor

SIZE, SCALE, SIDE = 224, (0.2, 1.0), 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCHES = 2
"""Of each loader in a turn: some read ahead."""
Batches = Iterator[Any]


def write_files(source: str, folder: Path, most: int) -> int:
    """The JPEGs of a source as a folder with one class, as parquet and as a tar file; returns how many there are."""
    images, files = open_images(source, channels=3), []
    for position in images.positions[:most]:
        with images.store.open(int(position)) as file:
            content = file.read()
        if content.startswith(b"\xff\xd8"):
            files.append(content)
    if not files:
        raise SystemExit(f"{source} holds no JPEGs")
    files *= -(-min(most, 100) // len(files))
    (folder / "jpeg" / "photos").mkdir(parents=True)
    for number, content in enumerate(files):
        (folder / "jpeg" / "photos" / f"{number:05d}.jpg").write_bytes(content)
    pq.write_table(pa.table({"image": files}), folder / "images.parquet", row_group_size=100)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for number, content in enumerate(files):
            info = tarfile.TarInfo(f"{number:05d}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return len(files)


class Encoded:
    """Images that are decoded whenever they are read."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index]

    def preload(self) -> bool:
        return False


def ours(images: Examples, batch: int, augment: Any) -> Batches:
    sampler = EpochSampler(len(images), batch, seed=0, steps=100_000)
    return iter(loader(TrainSet(images, augment, seed=0), sampler, workers=0))


def torchvisions(folder: Path, batch: int, **how: Any) -> Batches:
    dataset = ImageFolder(str(folder / "jpeg"), **how)
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**8)
    return iter(DataLoader(dataset, batch, sampler=sampler, num_workers=0))


def webdatasets(folder: Path, batch: int, transform: Callable[[Any], Tensor]) -> Batches:
    import webdataset

    dataset = webdataset.WebDataset(str(folder / "images.tar"), shardshuffle=False).shuffle(100).decode("pil")
    dataset = dataset.to_tuple("jpg").map_tuple(transform).repeat().batched(batch)
    return iter(DataLoader(dataset, batch_size=None, num_workers=0))


def mapped(packed: PackedImages, folder: Path, batch: int) -> Batches:
    """Crops of the packed pixels, in a file with channels last, by numpy and OpenCV."""
    import cv2

    cv2.setNumThreads(1)
    with (folder / "channels_last.bin").open("wb") as file:
        for index in range(len(packed)):
            file.write(packed[index][0].permute(1, 2, 0).contiguous().numpy().tobytes())
    pixels = np.memmap(folder / "channels_last.bin", dtype=np.uint8, mode="r")
    draw, augment = random.Random(0), Augment((SIZE, SIZE), SCALE, True, MEAN, STD)
    while True:
        crops = np.empty((batch, SIZE, SIZE, 3), dtype=np.uint8)
        for row in crops:
            index = draw.randrange(len(packed))
            (height, width), end = packed.sizes[index].tolist(), int(packed.ends[index])
            image = pixels[end - 3 * height * width : end].reshape(height, width, 3)
            top, left, rows, cols = augment.draw_crop(height, width, draw)
            cv2.resize(image[top : top + rows, left : left + cols], (SIZE, SIZE), dst=row, interpolation=cv2.INTER_AREA)
            if draw.random() < 0.5:
                row[:] = row[:, ::-1]
        yield augment.normalize.batch(torch.from_numpy(crops).permute(0, 3, 1, 2)).contiguous()


def contenders(folder: Path, batch: int) -> dict[str, Batches]:
    pil = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, SCALE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    tensors = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, SCALE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    augment = Augment((SIZE, SIZE), SCALE, True, MEAN, STD)
    jpeg, parquet = (Encoded(open_images(str(folder / name), channels=3)) for name in ("jpeg", "images.parquet"))
    packed = pack_images(jpeg.images, SIDE, folder=folder)
    found = {
        "ours, JPEG folder": ours(jpeg, batch, augment),
        "ours, parquet": ours(parquet, batch, augment),
        f"ours, packed at {SIDE}": ours(packed, batch, augment),
        "ours, JPEG folder, cut only": ours(jpeg, batch, Cutter(augment)),
        f"ours, packed at {SIDE}, cut only": ours(packed, batch, Cutter(augment)),
        "torchvision ImageFolder, PIL": torchvisions(folder, batch, transform=pil),
        "torchvision ImageFolder, v2 on tensors": torchvisions(
            folder, batch, transform=tensors, loader=lambda path: decode_image(path, ImageReadMode.RGB)
        ),
    }
    if importlib.util.find_spec("webdataset"):
        found["webdataset, PIL"] = webdatasets(folder, batch, pil)
    if importlib.util.find_spec("cv2"):
        found["the mark: memory map, numpy, OpenCV"] = mapped(packed, folder, batch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="any source whose images are JPEGs; default: scikit-learn's photos")
    parser.add_argument("--images", type=int, default=600, help="at most")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for everybody
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = write_files(args.source or str(Path(sklearn.datasets.__file__).parent / "images"), folder, args.images)
        print(f"{number} JPEGs, batches of {args.batch}, one thread of {processor()}, processor time")
        rates: dict[str, list[float]] = {}
        loaders = contenders(folder, args.batch)
        for turn in islice(count(), args.turns + 1):
            for row, batches in loaders.items():
                start = time.process_time()
                for _ in range(BATCHES):
                    next(batches)
                if turn:  # the first one makes buffers and opens files
                    rates.setdefault(row, []).append(BATCHES * args.batch / (time.process_time() - start))
    first = statistics.median(next(iter(rates.values())))
    table = {
        row: {"rate": statistics.median(found), "ratio": statistics.median(found) / first}
        for row, found in rates.items()
    }
    print("| | images/s of one core | JPEG folder, ours = 1 |\n|---|---|---|")
    for row, found in table.items():
        print(f"| {row} | {found['rate']:,.0f} | {found['ratio']:.2f} |")
    if args.out:
        args.out.write_text(json.dumps({"processor": processor(), "images": number, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
