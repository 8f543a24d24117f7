"""Streams: sources that can only be read in order. Batches are shuffled in windows, and runs resume exactly.

A stream has no random access, so its images cannot be permuted as a whole. It is cut into windows of some thousand
images, and each window is shuffled. The content of a window depends only on the stream and the window's number, its
order only on the seed and the number. A resumed run reads its current window again, from the position saved in the
checkpoint, and continues with the same batches as an uninterrupted run.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from patchcast.data.columns import ANY_LABEL, Columns
from patchcast.data.decode import ImageFile, UnreadableImageError, decode
from patchcast.data.hub import encoded, first_line, image_column, import_datasets, label_column, open_row
from patchcast.data.journal import Journal
from patchcast.data.seeds import mix_seed
from patchcast.data.split_names import declared_splits
from patchcast.data.stores import Splits, Store
from patchcast.data.transforms import Cut

STREAM = "hf-stream:"
WINDOW = 2048
"""Minimum number of encoded images that are held in memory and shuffled together, rounded up to whole batches."""
HEAD = 1024
"""Images at a stream's beginning that channels, sizes and statistics are measured on."""


class StreamRow(NamedTuple):
    """An encoded image of a stream, with its epoch, its number in it, and its label (-1 for none).

    `content` is None if the row holds no image.
    """

    epoch: int
    number: int
    content: bytes | None
    label: int


@dataclass(frozen=True)
class Place:
    """The position of a window; `state` is the datasets library's state, or None at the stream's beginning."""

    window: int = 0
    epoch: int = 0
    index: int = 0
    state: str | None = None


class Rows:
    """The rows of a `datasets.IterableDataset`; images stay encoded.

    Args:
        dataset: a dataset with a column of images.
        column: name of that column.
        label: name of a column of integers, or None.
        name: name of the stream for messages.
    """

    def __init__(self, dataset: Any, column: str, label: str | None, name: str) -> None:
        selected = dataset.select_columns([column] if label is None else [column, label])
        self.dataset = encoded(selected, column)
        self.column, self.label, self.name = column, label, name

    def read(self, place: Place) -> Iterator[tuple[StreamRow, Callable[[], str]]]:
        """Iterate over rows from `place`, epoch after epoch; each comes with a function that returns the state after
        it.

        Raises:
            ValueError: if there are no rows, or they cannot be read.
        """
        epoch, index, state = place.epoch, place.index, place.state
        while True:
            dataset = copy.deepcopy(self.dataset)  # one that a state was loaded into begins there in each pass
            if state is not None:
                dataset.load_state_dict(json.loads(state))
            try:
                for row in dataset:
                    label = -1 if self.label is None else row[self.label]
                    content = _content(row[self.column])
                    yield (
                        StreamRow(epoch, index, content, label if type(label) is int else -1),
                        lambda dataset=dataset: json.dumps(dataset.state_dict()),  # type: ignore[misc]
                    )
                    index += 1
            except Exception as problem:  # the network's, the file formats', the library's
                raise ValueError(f"{self.name} cannot be read on from row {index}: {first_line(problem)}") from problem
            if index == 0:
                raise ValueError(f"{self.name} holds no rows")
            epoch, index, state = epoch + 1, 0, None


class HeadStore(Store):
    """The first images of a stream, held in memory as a source."""

    def __init__(self, rows: Rows, class_names: list[str] | None = None) -> None:
        passes = (row for row, _ in rows.read(Place()))
        self.rows = []
        for row in islice(passes, HEAD):
            if row.epoch:
                break
            self.rows.append(row)
        self.stream = rows
        self.class_names = class_names
        labels = np.array([row.label for row in self.rows], dtype=np.int64)
        self.labels = labels if (labels >= 0).any() else None

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, position: int) -> ImageFile:
        return _open(self.rows[position])

    def path(self, position: int) -> str:
        return f"{self.stream.name}, row {position}"


def stream_splits(source: str, columns: Columns = ANY_LABEL) -> Splits:
    """The splits of `hf-stream:NAME` or `hf-stream:NAME:CONFIG`; opening a split reads its first images.

    Raises:
        ValueError: if the dataset cannot be fetched or holds no images.
    """
    library = import_datasets(source)
    name, _, config = source.removeprefix(STREAM).partition(":")
    try:
        found = library.load_dataset(name, config or None, streaming=True)
        features = next(iter(found.values())).features or {}
    except Exception as problem:  # the library's own, the hub's, the network's
        raise ValueError(f"{source} cannot be fetched: {first_line(problem)}") from problem
    column, label = image_column(features, source, columns.image), label_column(features, source, columns.label)
    class_names = getattr(features.get(label), "names", None)
    names = declared_splits(found)
    return {
        names[split]: partial(_head, dataset, column, label, f"{source} {split}", class_names)
        for split, dataset in found.items()
    }


def _head(dataset: Any, column: str, label: str | None, name: str, class_names: list[str] | None) -> HeadStore:
    return HeadStore(Rows(dataset, column, label, name), class_names)


class WindowSampler(Sampler[list[StreamRow]]):
    """Batches of rows of a stream. Batch t depends only on the stream, the seed and t.

    Args:
        rows: rows of the stream.
        batch_size: images per step, over all ranks.
        seed: seed of the run.
        steps: steps of the whole run.
        start_step: step of the first batch.
        place: the value of `place(start_step)` in the run that is resumed; without it, the stream is read from the
            beginning, which gives the same batches.
        rank: which share of each batch to return; every rank reads the whole stream.
        world: number of ranks.
        accumulate: pieces into which a rank's share is split.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int,
        steps: int,
        start_step: int = 0,
        place: dict[str, Any] | None = None,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % (world * accumulate):
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} ranks in {accumulate} pieces")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.steps, self.start_step = steps, start_step
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.batches_per_window = math.ceil(WINDOW / batch_size)
        begin = Place(**place) if place else Place()
        self.places = {begin.window: begin}

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[StreamRow]]:
        begin = self.places[min(self.places)]
        rows, count = self.rows.read(begin), self.batches_per_window
        share = self.batch_size // (self.world * self.accumulate)
        for number in range(begin.window, math.ceil(self.steps / count)):
            taken = list(islice(rows, count * self.batch_size))
            last, state = taken[-1]
            self.places[number + 1] = Place(number + 1, last.epoch, last.number + 1, state())
            order = torch.randperm(len(taken), generator=_generator(self.seed, number)).tolist()
            for batch in range(count):
                if not self.start_step <= number * count + batch < self.steps:
                    continue
                for piece in range(self.accumulate):
                    first = batch * self.batch_size + (piece * self.world + self.rank) * share
                    yield [taken[place][0] for place in order[first : first + share]]

    def place(self, step: int) -> dict[str, Any]:
        """The position to resume from for the batch of a step, as plain values.

        Forgets earlier positions, but for the window before: reading may be a batch ahead.
        """
        window = step // self.batches_per_window
        for older in [place for place in self.places if place < window - 1]:
            del self.places[older]
        return dict(vars(self.places[window]))


class StreamSet(Dataset[Any]):
    """Augmented images of a stream, decoded a batch at a time; the same rows always give the same pixels.

    An unreadable row is replaced by the next readable one of its batch, with a different augmentation, and is named in
    a warning.

    Args:
        rows: rows of the stream.
        channels: number of channels to decode to.
        augment: called with an image and `mix_seed(seed, epoch, number)`.
        seed: seed of the run.
    """

    def __init__(self, rows: Rows, channels: int, augment: Callable[[Tensor, int], Tensor | Cut], seed: int) -> None:
        self.rows, self.channels, self.augment, self.seed = rows, channels, augment, seed
        self._journal: Journal | None = None

    def write_down(self, journal: Journal) -> None:
        """Make every process that reads the stream append unreadable rows to a file."""
        self._journal = journal

    def sampler(self, batch_size: int, **how: Any) -> WindowSampler:
        return WindowSampler(self.rows, batch_size, **how)

    def __getitems__(self, batch: list[StreamRow]) -> list[tuple[Tensor | Cut, int]]:
        decoded = [self._decode(row) for row in batch]
        readable = [place for place, image in enumerate(decoded) if image is not None]
        if not readable:
            raise ValueError(f"none of the {len(batch)} images of a batch of {self.rows.name} can be read")
        found = []
        for place, row in enumerate(batch):
            chosen = next((other for other in readable if other >= place), readable[0])
            image = decoded[chosen]
            assert image is not None
            found.append((self.augment(image, mix_seed(self.seed, row.epoch, row.number)), batch[chosen].label))
        return found

    def _decode(self, row: StreamRow) -> Tensor | None:
        try:
            with _open(row) as file:
                return decode(file, self.channels)
        except (UnreadableImageError, OSError) as problem:
            name = f"{self.rows.name}, row {row.number}"
            warnings.warn(f"skipped {name}: {problem}", stacklevel=2)
            if self._journal is not None:
                self._journal.add(name, str(problem))
            return None


def _open(row: StreamRow) -> ImageFile:
    if row.content is None:
        raise OSError("no bytes in this row")
    return BytesIO(row.content)


def _content(image: Any) -> bytes | None:
    try:
        with open_row(image) as file:
            return file.read()
    except OSError:
        return None


def _generator(seed: int, window: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(seed, window))
