"""Columns of tables: select those of images and labels, and number the classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = (
    "image", "img", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "img_bytes", "image_data", "bytes",
    "picture", "photo", "content", "data",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "fine_label", "target", "targets", "category", "cls", "y", "class_id",
    "label_id", "category_id", "target_id", "class_name", "label_name", "class_label",
)  # fmt: skip
COARSER = {"coarse_label": "fine_label"}
"""Columns that are no labels next to a finer one."""
LARGEST_OWN = 10_000
"""Whole numbers below this are the classes' own numbers; larger or negative ones are names, such as ids."""
Value = int | float | bool | str | None


class SeveralLabelsError(ValueError):
    """A column of lists of labels; the message is a short reason."""


@dataclass(frozen=True)
class Columns:
    """Requested column names; None to detect them.

    Attributes:
        several: lists of labels are read as sets of classes, written `cat;dog`; otherwise they are no labels.
    """

    image: str | None = None
    label: str | None = None
    several: bool = False


ANY_LABEL = Columns()
SEPARATOR = ";"
"""Between the classes of an image that may have several, in its label."""


def choose_image(names: Collection[str], candidates: Collection[str], asked: str | None, where: str) -> str:
    """The image column: the requested one; else `image` or `img`, else the only candidate by name or type.

    Args:
        names: of all columns.
        candidates: those that can hold encoded images.
    Raises:
        ValueError: if there is none, or there are several.
    """
    listed = ", ".join(names) or "none"
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{where} has no column {asked!r}: its columns are {listed}")
        if asked not in candidates:
            raise ValueError(f"the column {asked!r} of {where} holds no encoded images: bytes, or a struct of them")
        return asked
    for usual in IMAGE_COLUMNS[:2]:
        if usual in candidates:
            return usual
    by_name = [name for name in candidates if name.casefold() in IMAGE_COLUMNS]
    chosen = by_name or list(candidates)
    if len(chosen) > 1:
        raise ValueError(
            f"{where} has several columns that may hold images: {', '.join(chosen)}; name one with --image_column "
            f"(image_column in Python)"
        )
    if not chosen:
        raise ValueError(
            f"no image column in {where}: looked for one of bytes, or a struct of them; its columns are {listed}"
        )
    return chosen[0]


def choose_label(
    names: Collection[str], candidates: Collection[str], asked: str | None, where: str, typed: Collection[str] = ()
) -> str | None:
    """The label column: the requested one; else `label`, else the only candidate with a usual name.

    Args:
        names: of all columns.
        candidates: those of a type that labels can have.
        typed: those that the data set declares to be class labels.
    Raises:
        ValueError: if the requested one does not exist, or there are several with a usual name.
    """
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{where} has no column {asked!r}: its columns are {', '.join(names) or 'none'}")
        if asked not in candidates:
            raise ValueError(f"the column {asked!r} of {where} holds no labels (numbers, truth values or text)")
        return asked
    if "label" in candidates:
        return "label"
    chosen = list(typed) or [name for name in candidates if name.casefold() in (*LABEL_COLUMNS, *COARSER)]
    chosen = [name for name in chosen if COARSER.get(name.casefold()) not in {other.casefold() for other in chosen}]
    if len(chosen) > 1:
        raise ValueError(
            f"{where} has several columns that may hold labels: {', '.join(chosen)}; name one with --label_column "
            f"(label_column in Python)"
        )
    return chosen[0] if chosen else None


def number_classes(values: Iterable[Value]) -> tuple[dict[Value, int], list[str] | None]:
    """A number for each label, and the names of the classes in the order of their numbers.

    None, NaN, infinity and blank text are -1, no label.
    Small integers from 0 keep their value and have no names. Everything else is a name: text, booleans, and ids. Names
    are numbered in alphabetical order, and ids by size.

    >>> number_classes([2, 0, None]), number_classes([True, False])
    (({None: -1, 2: 2, 0: 0}, None), ({True: 1, False: 0}, ['False', 'True']))
    >>> number_classes(["007", "042"]), number_classes([2_000_000_000, 1_000_000_000])[1]
    (({'007': 0, '042': 1}, ['007', '042']), ['1000000000', '2000000000'])
    """
    values = list(values)
    numbers: dict[Value, int] = {value: -1 for value in values if _is_missing(value)}
    given = {value: _plain(value) for value in values if value not in numbers}
    whole = [value for value in given.values() if type(value) is int]
    if whole and len(whole) == len(given):
        smallest, largest = min(whole), max(whole)
        if smallest >= -1 and largest < max(LARGEST_OWN, 2 * len(whole)):
            return {**numbers, **dict(zip(given, whole, strict=True))}, None
        names = [str(number) for number in sorted(set(whole)) if number != -1 or smallest < -1]
    else:
        names = sorted({str(value) for value in given.values()})
    place = {name: number for number, name in enumerate(names)}
    return {**numbers, **{value: place.get(str(own), -1) for value, own in given.items()}}, names or None


def _is_missing(value: Value) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _plain(value: Value) -> Value:
    """Whole floating-point numbers as integers: a column of integers with gaps is often written so."""
    return int(value) if isinstance(value, float) and not value % 1 else value


def number_labels(
    columns: Mapping[str, pa.ChunkedArray], class_names: list[str] | None
) -> tuple[Mapping[str, np.ndarray | None], list[str] | None]:
    """Labels of every split as numbers, -1 for none, with one numbering for all splits.

    Fractions that are nearly all different are measurements and not classes: then there are no labels.

    Args:
        columns: of each split.
        class_names: where the data set says what its numbers mean.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {split: _unified(column) for split, column in columns.items()}
    kind = _common({column.type for column in columns.values()})
    columns = {split: column.cast(kind) for split, column in columns.items()}
    if class_names is not None and all(pa.types.is_integer(column.type) for column in columns.values()):
        return {
            split: pc.fill_null(column, -1).cast(pa.int64()).to_numpy() for split, column in columns.items()
        }, class_names
    distinct = {value for column in columns.values() for value in column.unique().to_pylist()}
    count = sum(len(column) for column in columns.values())
    has_fractions = any(isinstance(value, float) and math.isfinite(value) and value % 1 for value in distinct)
    if has_fractions and 2 * len(distinct) > count:
        return dict.fromkeys(columns), None
    numbers, names = number_classes(distinct)
    labels = {split: _numbered(column, numbers) for split, column in columns.items()}
    if all((column < 0).all() for column in labels.values()):
        return dict.fromkeys(columns), None
    return labels, names


def unread_labels(fields: Mapping[str, object]) -> str:
    """Why there are no labels, where a column has a usual name for them and another type.

    >>> unread_labels({"image": "binary", "label": "struct<a: int64>"})
    "the column 'label' holds struct<a: int64>, and labels are numbers, truth values or text, one for each image"

    Args:
        fields: the types of all columns that hold no labels.
    """
    for name, kind in fields.items():
        if name.casefold() in (*LABEL_COLUMNS, *COARSER):
            return f"the column {name!r} holds {kind}, and labels are numbers, truth values or text, one for each image"
    return ""


def is_label_type(kind: pa.DataType) -> bool:
    """Whether labels can have this type: numbers, booleans, text, and dictionaries or lists of these.

    Lists of several labels are none; only the values show it (`SeveralLabelsError`).
    """
    import pyarrow.types as types

    if types.is_dictionary(kind) or is_list(kind):
        return is_label_type(kind.value_type)
    checks = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string,
              types.is_string_view, types.is_decimal)  # fmt: skip
    return any(check(kind) for check in checks)


def is_list(kind: pa.DataType) -> bool:
    """Whether each value is a list."""
    import pyarrow.types as types

    return any(check(kind) for check in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _unified(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionaries and lists of one, and in one of four types: int64, float64, bool or string.

    Raises:
        SeveralLabelsError: if a list holds several.
    """
    import pyarrow as pa
    import pyarrow.types as types

    if is_list(column.type):
        values = column.to_pylist()
        if any(value is not None and len(value) > 1 for value in values):
            raise SeveralLabelsError(
                "holds lists of several labels, and an image has one; patchcast finetune --multi_label takes several"
            )
        single = [value[0] if value else None for value in values]
        column = pa.chunked_array([pa.array(single, column.type.value_type)])
    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    if types.is_boolean(kind) or types.is_null(kind):
        return column
    if types.is_uint64(kind) or types.is_decimal(kind):
        return column.cast(pa.string())
    return column.cast(
        pa.int64() if types.is_integer(kind) else pa.float64() if types.is_floating(kind) else pa.string()
    )


def as_sets(column: pa.ChunkedArray, class_names: list[str] | None) -> pa.ChunkedArray:
    """Lists of classes as text such as `cat;dog`; an empty list is `;`, the empty set. Other columns as they are.

    >>> import pyarrow as pa
    >>> as_sets(pa.chunked_array([[[1, 0], [], None]]), ["cat", "dog"]).to_pylist()
    ['cat;dog', ';', None]

    Args:
        class_names: of the numbers in the lists, if the data set says what they mean.
    Raises:
        ValueError: if a number has no name, or a name has a `;` in it.
    """
    import pyarrow as pa

    if not is_list(column.type):
        return column
    lists = column.to_pylist()
    distinct = {value for values in lists for value in values or ()}
    if class_names is not None and all(type(value) is int for value in distinct):
        if outside := sorted(value for value in distinct if not 0 <= value < len(class_names)):
            raise ValueError(f"a list of labels holds class {outside[0]}, and there are {len(class_names)} class names")
        names = {value: class_names[value] for value in distinct}
    else:
        names = {value: str(_plain(value)).strip() for value in distinct if not _is_missing(value)}
    if broken := [name for name in names.values() if SEPARATOR in name]:
        raise ValueError(
            f"the class {broken[0]!r} has a {SEPARATOR!r} in its name, which separates the classes of an image"
        )
    sets = [
        None
        if values is None
        else SEPARATOR.join(sorted({names[value] for value in values if value in names})) or SEPARATOR
        for values in lists
    ]
    return pa.chunked_array([pa.array(sets, pa.string())])


def _numbered(column: pa.ChunkedArray, numbers: Mapping[Value, int]) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode()
    table = np.array([numbers[value] if value == value else -1 for value in encoded.dictionary.to_pylist()] or [-1])
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(index < 0, -1, table[index]).astype(np.int64)


def joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """One column of those of several files, whose types may differ: int32 in one and int64 in another."""
    import pyarrow as pa

    parts = [_unified(column) for column in columns]
    kind = _common({part.type for part in parts})
    return pa.chunked_array([chunk for part in parts for chunk in part.cast(kind).chunks], kind)


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    import pyarrow as pa

    kinds = {kind for kind in kinds if not pa.types.is_null(kind)} or kinds
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if kinds <= {pa.int64(), pa.float64()} else pa.string()
