"""Images as codes: encoded once, cached on disk, and used by a network without their pixels."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64, Real
from rich.progress import track
from torch import Tensor, nn

from patchcast.data.fingerprint import fingerprint_images
from patchcast.data.images import DECODED_BYTES
from patchcast.data.seals import matches_seal, seal
from patchcast.files import cache_folder, write_whole, writing_cache
from patchcast.geometry import Grid
from patchcast.tokenizers.base import Tokenizer
from patchcast.tokenizers.palette import ImageSource

ENCODING_BATCH = 256
KEY_SAMPLE = 64
"""Images that are encoded at each call: their codes are part of the cache key."""


class Encoded(nn.Module):
    """A tokenizer whose images are codes already: (B, 1, rows, cols) of any integer type.

    >>> Encoded(512).encode(torch.tensor([[[[5, 511], [0, 7]]]])).tolist()
    [[5, 511, 0, 7]]
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def encode(self, images: Real[Tensor, "B 1 rows cols"]) -> Int64[Tensor, "B N"]:
        """
        Raises:
            ValueError: if the images are floating point: pixels, most likely.
        """
        if images.is_floating_point():
            raise ValueError(f"codes are whole numbers; got {images.dtype} (encode images with their own tokenizer)")
        return images.flatten(1).long()


class CodeSet:
    """The codes of a source's images, memory-mapped from disk: one or two bytes per code.

    Attributes:
        codes: uint8, or uint16 for more than 256 codes.
        labels: class of each image; -1 for none.
    """

    def __init__(self, codes: np.ndarray, labels: np.ndarray, grid: Grid, vocabulary: int) -> None:
        self.codes, self.labels, self.grid, self.vocabulary = codes, labels, grid, vocabulary

    def __len__(self) -> int:
        return len(self.codes)

    def preload(self) -> bool:
        """Read all codes into memory if they take at most 1 GiB; returns whether they are in memory."""
        if self.codes.nbytes <= DECODED_BYTES:
            self.codes = np.array(self.codes)
        return not isinstance(self.codes, np.memmap)

    def ids(self, index: Sequence[int] | slice | np.ndarray = slice(None)) -> Int64[Tensor, "B N"]:
        """The codes of some images, row by row."""
        return torch.from_numpy(self.codes[index].astype(np.int64))

    def __getitem__(self, index: int) -> tuple[Int64[Tensor, "1 rows cols"], int]:
        return self.ids([index]).view(1, *self.grid), int(self.labels[index])


def encode_images(
    images: ImageSource,
    tokenizer: Tokenizer,
    transform: Callable[[Tensor], Tensor],
    grid: Grid,
    *,
    folder: Path | None = None,
    progress: bool = False,
) -> CodeSet:
    """Encode a whole source once, and cache the codes on disk.

    The cache key is the content of the images, not their names, and the palette and size. Damaged files are written
    again.

    >>> from patchcast.data import Evaluate, open_images
    >>> from patchcast.tokenizers.palette import fit_palette
    >>> digits, transform = open_images("digits"), Evaluate((8, 8), (0.5,), (0.5,))
    >>> palette = fit_palette(digits, 16)
    >>> codes = encode_images(digits, palette, transform, Grid(8, 8), folder=getfixture("tmp_path"))
    >>> len(codes), codes.ids([0]).shape, codes.codes.dtype
    (1437, torch.Size([1, 64]), dtype('uint8'))

    Args:
        images: a source, such as from `patchcast.data.open_images`.
        transform: from an image to the tokenizer's input: `Evaluate(size, (0.5,) * 3, (0.5,) * 3)` for a palette.
        grid: rows and columns of codes.
        folder: of the cache; None for the user's cache folder.
        progress: show a progress bar.
    Raises:
        ValueError: if there are no images, the tokenizer gives another number of codes than the grid has, or the codes
            cannot be written.
    """
    if not len(images):
        raise ValueError("there are no images to encode")
    sample = np.unique(np.linspace(0, len(images) - 1, min(KEY_SAMPLE, len(images))).astype(int)).tolist()
    codes, labels = _encode(images, sample, tokenizer, transform)
    if codes.shape[1] != grid.units:
        raise ValueError(f"the tokenizer gives {codes.shape[1]} codes for an image; a {grid} grid has {grid.units}")
    name = _key(images, tokenizer, grid, codes, labels)
    folder = folder or cache_folder()
    file, labels_file = folder / f"codes-{name}.npy", folder / f"codes-{name}-labels.npy"
    if not (matches_seal(file) and matches_seal(labels_file)):
        _write(file, labels_file, images, tokenizer, transform, codes.dtype, grid, progress)
    return CodeSet(np.load(file, mmap_mode="r"), np.load(labels_file), grid, tokenizer.vocabulary)


def _key(images: ImageSource, tokenizer: Tokenizer, grid: Grid, codes: np.ndarray, labels: np.ndarray) -> str:
    """A hash of what the codes depend on: image content, tokenizer weights, and the transform (by a sample's codes)."""
    content = f"{len(images)} {tokenizer.vocabulary} {grid} {codes.dtype}".encode() + codes.tobytes() + labels.tobytes()
    digest = hashlib.blake2b(content + fingerprint_images(images), digest_size=16)
    if isinstance(tokenizer, nn.Module):
        for name, tensor in tokenizer.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(
    file: Path, labels_file: Path, images: ImageSource, tokenizer: Tokenizer, transform: Callable[[Tensor], Tensor],
    kind: np.dtype, grid: Grid, progress: bool,
) -> None:  # fmt: skip
    """Encode the images in batches and write the codes."""
    labels = np.empty(len(images), dtype=np.int64)
    size = len(images) * grid.units * kind.itemsize

    def write_codes(unfinished: Path) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(kind),
            "fortran_order": False,
            "shape": (len(images), grid.units),
        }
        # Not through a memory map: a full disk would then kill the process with a signal.
        with unfinished.open("wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            os.posix_fallocate(out.fileno(), 0, out.tell() + size)
            for start in track(range(0, len(images), ENCODING_BATCH), "encoding", disable=not progress):
                index = range(start, min(start + ENCODING_BATCH, len(images)))
                codes, labels[start : index.stop] = _encode(images, index, tokenizer, transform)
                out.write(codes.tobytes())

    try:
        with writing_cache(file.parent):
            if shutil.disk_usage(file.parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before hours of encoding
            write_whole(file, write_codes)
            write_whole(labels_file, lambda unfinished: np.save(unfinished, labels))
            seal(file)
            seal(labels_file)
    except OSError as problem:
        raise ValueError(
            f"the codes of {len(images):,} images need {size / 2**20:,.0f} MiB in {file.parent}, which cannot be "
            f"written: {problem.strerror or problem}; set XDG_CACHE_HOME to a larger disk"
        ) from problem


class Mirror:
    """Mirror half of the images, as codes, for tokenizers whose codes mirror with the image, such as palettes.

    It is called by `patchcast.data.TrainSet`, with a different seed for each image and epoch.

    >>> codes = torch.tensor([[[1, 2, 3]]])
    >>> [Mirror()(codes, seed).tolist() for seed in (0, 1)]
    [[[[1, 2, 3]]], [[[3, 2, 1]]]]
    """

    def __call__(self, codes: Int[Tensor, "1 rows cols"], seed: int) -> Int[Tensor, "1 rows cols"]:
        return codes.flip(-1) if seed % 2 else codes


class Unchanged:
    """Returns codes unchanged; used instead of `Mirror`."""

    def __call__(self, codes: Int[Tensor, "1 rows cols"], seed: int) -> Int[Tensor, "1 rows cols"]:
        return codes


AsItIs = Unchanged
"""The earlier name of `Unchanged`."""


def _encode(
    images: ImageSource, index: Sequence[int], tokenizer: Tokenizer, transform: Callable[[Tensor], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = zip(*(images[i] for i in index), strict=True)
    with torch.no_grad():
        ids = tokenizer.encode(torch.stack([transform(image) for image in pixels]))
    kind = np.uint8 if tokenizer.vocabulary <= 256 else np.uint16
    return ids.cpu().numpy().astype(kind), np.array(labels, dtype=np.int64)
