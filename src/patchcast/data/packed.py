"""Images decoded once into one file, from which every epoch reads pixels: for sources that do not fit in memory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from rich.progress import track
from torch import Tensor

from patchcast.data.fingerprint import fingerprint_images
from patchcast.data.images import Images
from patchcast.data.seals import matches_seal, seal
from patchcast.data.transforms import resize
from patchcast.files import cache_folder

ROW = np.dtype([("height", "<i4"), ("width", "<i4"), ("label", "<i8")])
ROWS_AT_ONCE = 256
"""Images that are written at a time: what a killed process loses."""


class PackedImages:
    """Images of any sizes, one after the other in a file that is mapped into memory; a source for `TrainSet`.

    A crop reads no more of the file than its rows.

    Attributes:
        labels: of each image, -1 for none.
    """

    def __init__(self, file: Path, rows: np.ndarray, channels: int) -> None:
        self.file, self.channels = file, channels
        self.sizes, self.labels = np.stack([rows["height"], rows["width"]], axis=1), rows["label"]
        self.ends = np.cumsum(self.sizes.prod(axis=1, dtype=np.int64) * channels)
        self._open()

    def _open(self) -> None:
        self._pixels = torch.from_file(str(self.file), shared=False, size=int(self.ends[-1]), dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pixels"}  # workers open it themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "C H W"], int]:
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        pixels = self._pixels[end - self.channels * height * width : end]
        return pixels.view(self.channels, height, width), int(self.labels[index])

    def preload(self) -> bool:
        """Nothing: the system's file cache holds what fits in memory."""
        return False


def pack_images(images: Images, side: int, *, folder: Path | None = None, progress: bool = False) -> PackedImages:
    """Decode a whole source once, and cache the pixels on disk.

    The cache key is the content of the files, not their names, and the size. A killed process resumes where it was, to
    the last hundreds of images, and damaged files are written again.

    >>> from patchcast.data import open_images
    >>> digits = open_images("digits")
    >>> packed = pack_images(digits, 8, folder=getfixture("tmp_path"))
    >>> len(packed), torch.equal(packed[3][0], digits[3].image), packed[3][1] == digits[3].label
    (1437, True, True)

    Args:
        side: images whose shorter side is longer are shrunk to it, with antialiasing; the others stay as they are.
        folder: of the cache; None for the user's cache folder.
        progress: show a progress bar.
    Raises:
        ValueError: if `side` is not positive, the images are not 8-bit, or they cannot be written.
    """
    if side < 1:
        raise ValueError(f"packed images have a side of at least 1 pixel; got {side}")
    folder = folder or cache_folder()
    key = hashlib.blake2b(f"{len(images)} {side}".encode() + fingerprint_images(images), digest_size=16).hexdigest()
    file, index = folder / f"packed-{key}.bin", folder / f"packed-{key}-rows.bin"
    if not (matches_seal(file) and matches_seal(index)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"packed-{key}.lock").open("a") as lock:
                with suppress(OSError):  # the file system has no locks
                    fcntl.flock(lock, fcntl.LOCK_EX)  # processes of other devices wait for the first
                if not (matches_seal(file) and matches_seal(index)):
                    _write(images, side, file, index, progress)
        except OSError as problem:
            raise ValueError(
                f"the pixels of {len(images):,} images cannot be written in {folder}: {problem.strerror or problem}; "
                "pack them with a smaller side, or set XDG_CACHE_HOME to a larger disk"
            ) from problem
    return PackedImages(file, np.fromfile(index, dtype=ROW), images.channels)


def _write(images: Images, side: int, file: Path, index: Path, progress: bool) -> None:
    """Append to unfinished files, pixels before the rows that count them, so that what rows count is there."""
    pixels, rows = (one.with_name(f"{one.name}.part") for one in (file, index))
    done = np.fromfile(rows, dtype=ROW) if rows.exists() else np.empty(0, ROW)
    begun = int((done["height"].astype(np.int64) * done["width"]).sum()) * images.channels
    if not pixels.exists() or pixels.stat().st_size < begun:
        done, begun = done[:0], 0
    with pixels.open("ab") as out, rows.open("ab") as counted:
        out.truncate(begun)
        counted.truncate(len(done) * ROW.itemsize)
        starts = range(len(done), len(images), ROWS_AT_ONCE)
        for start in track(starts, "decoding", disable=not progress):
            batch = [_packed(images, number, side) for number in range(start, min(start + ROWS_AT_ONCE, len(images)))]
            if start == len(done):
                mean = sum(image.numel() for image, _ in batch) / len(batch)
                if shutil.disk_usage(file.parent).free < mean * (len(images) - start):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before hours of decoding
            for image, _ in batch:
                out.write(image.contiguous().numpy().data)
            out.flush()
            os.fsync(out.fileno())
            sizes = [(image.shape[1], image.shape[2], label) for image, label in batch]
            counted.write(np.array(sizes, dtype=ROW).tobytes())
            counted.flush()
        os.fsync(counted.fileno())
    for part, whole in ((pixels, file), (rows, index)):
        part.replace(whole)
        seal(whole)


def _packed(images: Images, number: int, side: int) -> tuple[UInt8[Tensor, "C h w"], int]:
    image, label = images[number]
    if image.dtype != torch.uint8:
        raise ValueError(f"only 8-bit images are packed; those of {images.name} are {image.dtype}")
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    return (image if scale >= 1 else resize(image, (round(height * scale), round(width * scale)))), int(label)
