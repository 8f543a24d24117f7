"""A hash of a source of images, which changes if an image is replaced under the same name."""

from __future__ import annotations

import hashlib
import os
from io import BufferedReader
from typing import Any

import numpy as np
from torch.utils.data import Subset

from patchcast.data.decode import ImageFile
from patchcast.data.images import Images

WHOLE = 2**16
"""Bytes up to which a file is read whole; of a longer one, evenly spaced blocks are."""
BLOCK, BLOCKS = 4096, 16


def fingerprint_images(images: Any) -> bytes:
    """A hash of all images and labels, in their order.

    Of `Images` and subsets of them: every file's length, time of change and a sample of its bytes, which is all of a
    small file; nothing is decoded. Of any other source: every pixel.

    >>> from patchcast.data import open_images
    >>> digits = open_images("digits")
    >>> fingerprint_images(digits) == fingerprint_images(open_images("digits"))
    True
    >>> fingerprint_images(digits) == fingerprint_images(digits.subset(np.arange(1436)))
    False
    """
    if isinstance(images, Subset) and isinstance(images.dataset, Images):
        images = images.dataset.subset(np.asarray(images.indices))
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(images, Images):
        digest.update(f"{images.channels}".encode() + images.positions.tobytes())
        digest.update(b"" if images.labels is None else images.labels.tobytes())
        for position in images.positions.tolist():
            digest.update(_of_file(images, position))
        return digest.digest()
    for index in range(len(images)):
        image, label = images[index]
        digest.update(f"{tuple(image.shape)} {image.dtype} {int(label)}".encode() + image.numpy().tobytes())
    return digest.digest()


def _of_file(images: Images, position: int) -> bytes:
    try:
        with images.store.open(position) as file:
            return _sample(file)
    except OSError as problem:
        return str(problem.strerror).encode()


def _sample(file: ImageFile) -> bytes:
    length = file.seek(0, 2)
    changed = os.fstat(file.fileno()).st_mtime_ns if isinstance(file, BufferedReader) else 0
    digest = hashlib.blake2b(f"{length} {changed}".encode(), digest_size=16)
    starts = [0] if length <= WHOLE else [(length - BLOCK) * number // (BLOCKS - 1) for number in range(BLOCKS)]
    for start in starts:
        file.seek(start)
        digest.update(file.read(WHOLE if length <= WHOLE else BLOCK))
    return digest.digest()
