"""Images of Hugging Face datasets, through their `datasets` library: saved to disk, or by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchcast.data.columns import (
    ANY_LABEL,
    Columns,
    SeveralLabelsError,
    as_sets,
    choose_image,
    choose_label,
    number_labels,
    unread_labels,
)
from patchcast.data.decode import ImageFile
from patchcast.data.split_names import declared_splits
from patchcast.data.stores import Splits, Store

if TYPE_CHECKING:
    import datasets

HUB = "hf:"


class HubStore(Store):
    """The rows of a `datasets.Dataset`, with encoded images.

    The library memory-maps its files, so rows can be read in any order.

    Args:
        dataset: with a column of images.
        column: its name.
        labels: one per row, or None.
        class_names: names of the classes.
        name: of the dataset, for messages.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        column: str,
        labels: np.ndarray | None = None,
        class_names: list[str] | None = None,
        name: str = "dataset",
        no_labels: str = "",
    ) -> None:
        self.images = encoded(dataset.select_columns([column]), column)
        self.no_labels = no_labels
        self.column, self.labels, self.class_names, self.name = column, labels, class_names, name

    def __len__(self) -> int:
        return len(self.images)

    def open(self, position: int) -> ImageFile:
        return open_row(self.images[position][self.column])

    def path(self, position: int) -> str:
        return f"{self.name}, row {position}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_splits(folder: Path, columns: Columns = ANY_LABEL) -> Splits:
    """The splits of what `save_to_disk` wrote; one without splits is `train`.

    Raises:
        ValueError: in one sentence, if it cannot be read or holds no images.
    """
    library = import_datasets(str(folder))
    try:
        found = library.load_from_disk(str(folder))
    except Exception as problem:  # whatever Arrow, JSON or the library raise on broken files
        raise ValueError(f"{folder} cannot be read by datasets: {first_line(problem)}") from problem
    return splits_of(found if isinstance(found, dict) else {"train": found}, str(folder), columns)


def hub_splits(source: str, columns: Columns = ANY_LABEL) -> Splits:
    """The splits of `hf:NAME` or `hf:NAME:CONFIG`, fetched or found in the library's own cache.

    The library reads data and runs no code of the data set's (from its version 4 on).

    Raises:
        ValueError: in one sentence, if it cannot be fetched or holds no images.
    """
    library = import_datasets(source)
    name, _, config = source.removeprefix(HUB).partition(":")
    try:
        found = library.load_dataset(name, config or None)
    except Exception as problem:  # the library's own, the hub's, the network's
        raise ValueError(f"{source} cannot be fetched: {first_line(problem)}") from problem
    return splits_of(found, source, columns)


def splits_of(found: Mapping[str, datasets.Dataset], source: str, columns: Columns = ANY_LABEL) -> Splits:
    """Stores of some splits of one data set, with one numbering of labels for all."""
    names = declared_splits(found)
    found = {names[name]: dataset for name, dataset in found.items()}
    features = next(iter(found.values())).features
    column = image_column(features, source, columns.image)
    label = label_column(features, source, columns.label, with_lists=True)
    labels: Mapping[str, np.ndarray | None] = dict.fromkeys(found)
    reason = unread_labels(features) if label is None else ""
    kind = features.get(label)
    class_names = getattr(getattr(kind, "feature", kind), "names", None)  # of a list: what its values are
    if label is not None:
        values = {name: part.select_columns([label]).with_format("arrow")[:][label] for name, part in found.items()}
        try:
            if columns.several:
                values = {name: as_sets(column, class_names) for name, column in values.items()}
            labels, class_names = number_labels(values, class_names)
        except SeveralLabelsError as problem:
            if columns.label is not None:
                raise ValueError(f"the column {label!r} of {source} {problem}") from problem
            reason, class_names = f"the column {label!r} {problem}", None
    return {
        name: partial(HubStore, part, column, labels[name], class_names, f"{source} {name}", reason)
        for name, part in found.items()
    }


def image_column(features: Any, source: str, asked: str | None = None) -> str:
    """The column of images; those of the library's type `Image` come before columns of bytes.

    Raises:
        ValueError: if there is none, or there are several; names the columns.
    """
    from datasets import Image

    typed = [name for name, kind in features.items() if isinstance(kind, Image)]
    of_bytes = [name for name, kind in features.items() if _is_encoded(kind)]
    usual = [name for name in ("image", "img") if name in of_bytes]
    candidates = (typed or of_bytes) if asked is None and not usual else [*typed, *of_bytes]
    return choose_image(list(features), candidates, asked, source)


def _is_encoded(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("binary", "large_binary") or (isinstance(kind, dict) and "bytes" in kind)


def label_column(features: Any, source: str, asked: str | None = None, *, with_lists: bool = False) -> str | None:
    """The column of labels; those of the library's type `ClassLabel` come before all but `label`.

    Args:
        with_lists: lists of labels count as well.
    Raises:
        ValueError: if the one asked for is not there, or there are several.
    """
    from datasets import ClassLabel, Value

    if with_lists:
        features = {name: getattr(kind, "feature", kind) for name, kind in features.items()}
    typed = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    plain = [name for name, kind in features.items() if isinstance(kind, Value) and _is_label(kind.dtype)]
    if typed and asked is None:  # next to declared classes, fractions are most likely measurements
        plain = [name for name in plain if not features[name].dtype.startswith("float")]
    return choose_label(list(features), [*typed, *plain], asked, source, typed)


def _is_label(dtype: str) -> bool:
    return dtype.startswith(("int", "uint", "float", "bool", "string", "large_string", "decimal"))


def encoded(dataset: Any, column: str) -> Any:
    """Its images as bytes or paths: decoding is ours, and the same for every kind of source."""
    from datasets import Image

    is_typed = isinstance((dataset.features or {}).get(column), Image)
    return dataset.cast_column(column, Image(decode=False)) if is_typed else dataset


def open_row(image: Any) -> ImageFile:
    """An image of a row as the library gives it undecoded: bytes, or bytes and a path, one of them perhaps None.

    Raises:
        OSError: if there is neither.
    """
    content = image.get("bytes") if isinstance(image, dict) else image
    if content is not None:
        return BytesIO(content)
    path = image.get("path") if isinstance(image, dict) else None
    if path and "://" in path:  # a stream leaves files where they are
        import fsspec

        with fsspec.open(path, "rb") as remote:
            return BytesIO(remote.read())
    if path:
        return open(path, "rb")
    raise OSError("no bytes in this row")


def import_datasets(source: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as problem:
        raise ValueError(f"{source} needs Hugging Face's datasets: pip install 'patchcast[data]'") from problem
    return datasets


def first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0] or type(problem).__name__
