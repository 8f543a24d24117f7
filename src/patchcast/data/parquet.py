"""Images in parquet files, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchcast.data.decode import ImageFile
from patchcast.data.files import SourceFile, by_split
from patchcast.data.stores import Splits, Store
from patchcast.files import cache_file, write_whole

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
IN_MEMORY_BYTES = 2**30
"""Encoded images up to this size are held in memory; larger sources are mapped from an uncompressed copy on disk."""


class ParquetStore(Store):
    """Rows of parquet files, each an encoded image and perhaps a label.

    Parquet cannot be read row by row: one image costs a whole row group. So the image column is held in memory, shared
    with forked workers, up to `IN_MEMORY_BYTES`; beyond, it is written once to the user's cache folder as an Arrow
    file, which is then mapped and takes as much disk as the parquet files, but no memory.
    """

    def __init__(
        self, files: list[SourceFile], column: str, labels: np.ndarray | None, class_names: list[str] | None
    ) -> None:
        self.files = files
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
        return f"{self.files[file].name}, row {position - (self.ends[file - 1] if file else 0)}"

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        import pyarrow as pa

        if sum(_stored_bytes(_open_parquet(file), self.column) for file in self.files) <= IN_MEMORY_BYTES:
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

        if not copy.exists():
            write_whole(copy, write)
        return copy


def parquet_splits(files: list[SourceFile]) -> Splits:
    """The splits of some parquet files, by their names (`patchcast.data.files.by_split`).

    Raises:
        ValueError: if a file is not parquet, or has no column of images; names the columns.
    """
    groups = by_split(files)
    columns = {name: _image_column(group[0]) for name, group in groups.items()}
    labels, class_names = _read_labels(groups)
    return {
        name: partial(ParquetStore, group, columns[name], labels[name], class_names) for name, group in groups.items()
    }


def _open_parquet(file: SourceFile) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(_broken(file, problem)) from problem


def _broken(file: SourceFile, problem: Exception) -> str:
    return f"{file.name} cannot be read as parquet: {str(problem).partition(chr(10))[0]}"


def _image_column(file: SourceFile) -> str:
    """Its path in the file: `image`, or `img.bytes` where the column is a struct of bytes and path."""
    import pyarrow as pa

    schema = _open_parquet(file).schema_arrow
    others = [field.name for field in schema if pa.types.is_struct(field.type)]
    for name in [*IMAGE_COLUMNS, *others]:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                return f"{name}.bytes"
    raise ValueError(
        f"no image column in {file.name}: looked for {' or '.join(IMAGE_COLUMNS)}, as bytes or as a struct with a "
        f"field bytes; its columns are {', '.join(schema.names) or 'none'}"
    )


def _stored_bytes(parquet: pq.ParquetFile, column: str) -> int:
    groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
    parts = [group.column(part) for group in groups for part in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema == column)


def _read_chunks(file: SourceFile, column: str) -> Iterator[pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        for batch in _open_parquet(file).iter_batches(batch_size=1024, columns=[column], use_threads=False):
            images = batch.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")  # keeps the struct's own nulls, which .field() drops
            yield images.cast(pa.large_binary())
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(_broken(file, problem)) from problem


def _read_labels(groups: dict[str, list[SourceFile]]) -> tuple[Mapping[str, np.ndarray | None], list[str] | None]:
    """Labels of every split and the class names, one numbering for all."""
    import pyarrow as pa

    schema = _open_parquet(next(iter(groups.values()))[0]).schema_arrow
    kind = schema.field(LABEL_COLUMN).type if LABEL_COLUMN in schema.names else pa.null()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        return dict.fromkeys(groups), None

    def read(file: SourceFile) -> pa.ChunkedArray:
        try:
            return _open_parquet(file).read([LABEL_COLUMN]).column(LABEL_COLUMN)
        except KeyError as problem:
            raise ValueError(f"{file.name} has no column {LABEL_COLUMN}, as its neighbours have") from problem
        except (pa.ArrowException, OSError) as problem:
            raise ValueError(_broken(file, problem)) from problem

    columns = {
        name: pa.chunked_array([chunk for file in group for chunk in read(file).chunks], kind)
        for name, group in groups.items()
    }
    return number_labels(columns, _class_names(schema))


def number_labels(
    columns: Mapping[str, pa.ChunkedArray], class_names: list[str] | None
) -> tuple[Mapping[str, np.ndarray | None], list[str] | None]:
    """Labels of every split as numbers, -1 for none; text is numbered in alphabetical order, the same in all splits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = next(iter(columns.values())).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        class_names = sorted({text for column in columns.values() for text in column.unique().to_pylist()} - {None})
        names = pa.array(class_names, kind)
        columns = {name: pc.index_in(column, value_set=names) for name, column in columns.items()}
    labels = {name: pc.fill_null(column.cast(pa.int64()), -1).to_numpy() for name, column in columns.items()}
    return labels, class_names


def _class_names(schema: pa.Schema) -> list[str] | None:
    """As Hugging Face's `datasets` writes them into the file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[LABEL_COLUMN]["names"])
    except (KeyError, TypeError, ValueError):
        return None
