"""Which split a folder or a file is, by its name; one table for folders, parquet, tar and Hugging Face datasets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "dev": "val", "validation": "validation",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""By each known name, in lower case, the name of the split. `val` and `validation` are two names of one split, both of
which configs use."""
PURPOSE = {"train": "training", "val": "validation", "validation": "validation", "test": "test"}
ORDER = ("train", "test", "val", "validation")


def split_of(name: str) -> str | None:
    """The split that a name means. Case is ignored, and so is a year or number at the end.

    >>> [split_of(name) for name in ("Train", "valid", "val2017", "validation", "eval", "cat", "trainer")]
    ['train', 'val', 'val', 'validation', 'test', None, None]
    """
    return SPLITS.get(re.sub(r"[-_ ]?\d+$", "", name).casefold())


def by_split_name(names: Iterable[str], where: str) -> dict[str, str]:
    """The names that mean a split, by split, in a fixed order.

    >>> by_split_name(["Test", "train", "extra"], "photos")
    {'train': 'train', 'test': 'Test'}

    Raises:
        ValueError: if two names mean the same split.
    """
    named: dict[str, str] = {}
    purposes: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split is None:
            continue
        other = purposes.setdefault(PURPOSE[split], name)
        if other != name:
            raise ValueError(
                f"{where} has {other!r} and {name!r}, and both names mean the {PURPOSE[split]} split: rename one of "
                f"them, or give {other!r} or {name!r} alone as the source"
            )
        named[split] = name
    return {split: named[split] for split in ORDER if split in named}


def match_split(asked: str, splits: Collection[str]) -> str | None:
    """The split with the requested name or another name of the same split; None if there is none.

    >>> match_split("validation", ["train", "val"]), match_split("Test", ["train", "test"]), match_split("a", ["train"])
    ('val', 'test', None)
    """
    if asked in splits:
        return asked
    purpose = PURPOSE.get(split_of(asked) or "")
    same = [split for split in splits if purpose is not None and PURPOSE.get(split_of(split) or "") == purpose]
    return same[0] if len(same) == 1 else None


def declared_splits(names: Iterable[str]) -> dict[str, str]:
    """The split that each of a dataset's split names means; a name that means no split, or an already used one, stays.

    >>> declared_splits(["Train", "valid", "extra"]), declared_splits(["test", "eval"])
    ({'Train': 'train', 'valid': 'val', 'extra': 'extra'}, {'test': 'test', 'eval': 'eval'})
    """
    splits: dict[str, str] = {}
    for name in names:
        split = split_of(name) or name
        splits[name] = name if split in splits.values() else split
    return splits
