"""Images in parquet files, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
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
    is_label_type,
    joined,
    number_labels,
    unread_labels,
)
from patchcast.data.decode import ImageFile
from patchcast.data.names import printable
from patchcast.data.seals import matches_seal, seal
from patchcast.data.source_files import SourceFile, by_split
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_whole, writing_cache

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IN_MEMORY_BYTES = 2**30
"""Encoded images up to this size are held in memory; larger sources are mapped from an uncompressed copy on disk."""


class ParquetStore(Store):
    """Rows of parquet files, each an encoded image and perhaps a label.

    Parquet cannot be read row by row: one image costs a whole row group. So the image column is held in memory, shared
    with forked workers, up to `IN_MEMORY_BYTES`; beyond, it is written once to the user's cache folder as an Arrow
    file, which is then mapped and takes as much disk as the parquet files, but no memory.
    """

    def __init__(
        self,
        files: list[SourceFile],
        column: str,
        labels: np.ndarray | None,
        class_names: list[str] | None,
        no_labels: str = "",
    ) -> None:
        self.files = files
        self.no_labels = no_labels
        self.column = column
        self.labels = labels
        self.class_names = class_names
        self.ends = np.cumsum([_open_parquet(file).metadata.num_rows for file in files])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def open(self, position: int) -> ImageFile:
        image = self._images[position].as_py()
        if image is None:
            raise OSError("no bytes in this row")
        return BytesIO(image)

    def path(self, position: int) -> str:
        file = int(np.searchsorted(self.ends, position, side="right"))
        return printable(f"{self.files[file].name}, row {position - (self.ends[file - 1] if file else 0)}")

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        import pyarrow as pa

        if sum(_stored_bytes(file, self.column) for file in self.files) <= IN_MEMORY_BYTES:
            chunks = [chunk for file in self.files for chunk in _read_chunks(file, self.column)]
            return pa.chunked_array(chunks, pa.large_binary())
        return pa.ipc.open_file(pa.memory_map(str(self._mapped_copy()))).read_all().column("image")

    def _mapped_copy(self) -> Path:
        import pyarrow as pa

        copy = cache_file(["parquet", self.column, *(file.state for file in self.files)], ".arrow")
        schema = pa.schema([("image", pa.large_binary())])

        def write(unfinished: Path) -> None:
            with pa.ipc.new_file(str(unfinished), schema) as out:
                for file in self.files:
                    for chunk in _read_chunks(file, self.column):
                        out.write_batch(pa.record_batch([chunk], schema=schema))

        if not matches_seal(copy):
            size = sum(_stored_bytes(file, self.column) for file in self.files)
            try:
                with writing_cache(copy.parent):
                    write_whole(copy, write)
                    seal(copy)
            except OSError as problem:
                raise ValueError(
                    f"the cache in {copy.parent} needs about {size / 2**30:.1f} GiB for {self.files[0].name}, and "
                    f"cannot be written: {problem.strerror or problem}; set XDG_CACHE_HOME to a larger disk"
                ) from problem
        return copy


def parquet_splits(files: list[SourceFile], columns: Columns = ANY_LABEL) -> Splits:
    """The splits of some parquet files, by their names (`patchcast.data.source_files.by_split`).

    Raises:
        ValueError: if a file is not parquet, or has no column of images; names the columns.
    """
    groups = by_split(files)
    images = {name: _image_column(group[0], columns.image) for name, group in groups.items()}
    labels, class_names, reason = _read_labels(groups, columns)
    return {
        name: partial(ParquetStore, group, images[name], labels[name], class_names, reason)
        for name, group in groups.items()
    }


def _open_parquet(file: SourceFile) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        is_text = printable(str(file.path)) == str(file.path)  # pyarrow opens no other names
        return pq.ParquetFile(file.path if is_text else open(file.path, "rb"))
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(_broken(file, problem)) from problem


def _broken(file: SourceFile, problem: Exception) -> str:
    return f"{file.name} cannot be read as parquet: {str(problem).partition(chr(10))[0]}"


def _image_column(file: SourceFile, asked: str | None) -> str:
    schema = _open_parquet(file).schema_arrow
    candidates = [field.name for field in schema if _path_of(field) is not None]
    return choose_image(schema.names, candidates, asked, file.name)


def _path_of(field: pa.Field) -> str | None:
    """The path in the file of a column's images: `image`, or `img.bytes` of a struct of bytes and path."""
    import pyarrow.types as types

    if types.is_struct(field.type):
        return f"{field.name}.bytes" if field.type.get_field_index("bytes") >= 0 else None
    return field.name if types.is_binary(field.type) or types.is_large_binary(field.type) else None


def _image_path(file: SourceFile, column: str) -> str:
    """Of a column in one file: the files of a source may differ in it."""
    schema = _open_parquet(file).schema_arrow
    path = _path_of(schema.field(column)) if column in schema.names else None
    if path is None:
        raise ValueError(f"{file.name} has no images in a column {column!r}, as the first file has")
    return path


def _stored_bytes(file: SourceFile, column: str) -> int:
    parquet, path = _open_parquet(file), _image_path(file, column)
    groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
    parts = [group.column(part) for group in groups for part in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema == path)


def _read_chunks(file: SourceFile, column: str) -> Iterator[pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    path = _image_path(file, column)
    try:
        for batch in _open_parquet(file).iter_batches(batch_size=1024, columns=[path], use_threads=False):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")  # keeps the struct's own nulls, which .field() drops
            yield images.cast(pa.large_binary())
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(_broken(file, problem)) from problem


def _read_labels(
    groups: dict[str, list[SourceFile]], columns: Columns
) -> tuple[Mapping[str, np.ndarray | None], list[str] | None, str]:
    """Labels of every split, the class names, one numbering for all, and why there are none (`Store.no_labels`).

    A split whose files have no such column has no labels: the public part of many a test set.
    """
    import pyarrow as pa

    asked = columns.label
    schemas = {name: _open_parquet(group[0]).schema_arrow for name, group in groups.items()}
    fields = {field.name: field for schema in reversed(schemas.values()) for field in schema}
    of_labels = {field.name for schema in schemas.values() for field in schema if is_label_type(field.type)}
    candidates = [name for name in fields if name in of_labels]  # all null in one split, perhaps
    first = next(iter(groups.values()))[0]
    label = choose_label(list(fields), candidates, asked, first.name)
    if label is None:
        others = {name: field.type for name, field in fields.items() if name not in candidates}
        return dict.fromkeys(groups), None, unread_labels(others)

    class_names = _class_names(schemas.values(), label)
    split_of_file = {file: name for name, group in groups.items() for file in group}

    def read(file: SourceFile) -> pa.ChunkedArray:
        parquet = _open_parquet(file)
        if label not in parquet.schema_arrow.names:
            if label not in schemas[split_of_file[file]].names:
                return pa.chunked_array([pa.nulls(parquet.metadata.num_rows)])
            raise ValueError(f"{file.name} has no column {label!r}, as its neighbors have")
        try:
            found = parquet.read([label]).column(label)
        except (pa.ArrowException, OSError) as problem:
            raise ValueError(_broken(file, problem)) from problem
        return as_sets(found, class_names) if columns.several else found

    try:
        values = {name: joined([read(file) for file in group]) for name, group in groups.items()}
        labels, class_names = number_labels(values, class_names)
    except SeveralLabelsError as problem:
        if asked is not None:
            raise ValueError(f"the column {asked!r} of {first.name} {problem}") from problem
        return dict.fromkeys(groups), None, f"the column {label!r} {problem}"
    return labels, class_names, ""


def _class_names(schemas: Iterable[pa.Schema], label: str) -> list[str] | None:
    """As Hugging Face's `datasets` writes them into the files' metadata."""
    for schema in schemas:
        try:
            features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
            feature = features[label]
            return list(feature.get("feature", feature)["names"])  # of a list: what its values are
        except (KeyError, TypeError, ValueError):
            continue
    return None
