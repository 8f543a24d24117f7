"""Which split a folder or a file is, by its name; one table for folders, parquet, tar and Hugging Face datasets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from patchcast.data.companions import MASKS

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "dev": "val", "validation": "validation",
    "test": "test", "testing": "test", "eval": "test",
    "trainset": "train", "valset": "val", "validset": "val", "devset": "val", "testset": "test", "evalset": "test",
}  # fmt: skip
"""By each known name, in lower case, the name of the split. `val` and `validation` are two names of one split, both of
which configs use."""
PURPOSE = {"train": "training", "val": "validation", "validation": "validation", "test": "test"}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
"""A word of a name: `train_images`, `trainImages` and `train-images` have the same two."""
ORDER = ("train", "test", "val", "validation")


def split_of(name: str) -> str | None:
    """The split that a name means. Case is ignored, and so is a year or number at the end.

    >>> [split_of(name) for name in ("Train", "valid", "val2017", "validation", "eval", "cat", "trainer")]
    ['train', 'val', 'val', 'validation', 'test', None, None]
    """
    return SPLITS.get(re.sub(r"[-_ ]?\d+$", "", name.strip()).casefold())


def by_split_name(names: Iterable[str], where: str) -> dict[str, str]:
    """The names that mean a split, by split, in a fixed order.

    >>> by_split_name(["Test", "train", "extra"], "photos")
    {'train': 'train', 'test': 'Test'}

    Raises:
        ValueError: if two names mean the same split.
    """
    return _by_split({name: split for name in names if (split := split_of(name)) is not None}, where)


def _by_split(splits: Mapping[str, str], where: str) -> dict[str, str]:
    named: dict[str, str] = {}
    purposes: dict[str, str] = {}
    for name, split in splits.items():
        other = purposes.setdefault(PURPOSE[split], name)
        if other != name:
            raise ValueError(
                f"{where} has {other!r} and {name!r}, and both names mean the {PURPOSE[split]} split: rename one of "
                f"them, or give {other!r} or {name!r} alone as the source"
            )
        named[split] = name
    return {split: named[split] for split in ORDER if split in named}


def by_split_word(names: Collection[str], where: str) -> dict[str, str]:
    """The names that tell a split by one word of several, such as `train_images` next to `test_images`.

    They do so only where names that are the same but for that word tell the training split and another one: a class
    can be called `bullet_train`. Names of masks (`train_masks`) do not count next to those of images.

    >>> by_split_word(["seg_train", "seg_test", "seg_pred"], ""), by_split_word(["bullet_train", "test_tube"], "")
    ({'train': 'seg_train', 'test': 'seg_test'}, {})
    >>> by_split_word(["trainImages", "trainMasks", "valImages", "valMasks"], "cells")
    {'train': 'trainImages', 'val': 'valImages'}

    Raises:
        ValueError: if the names have two readings.
    """
    by_rest: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        words = [word.casefold() for word in WORD.findall(name)]
        telling = [place for place, word in enumerate(words) if word in SPLITS]
        if len(telling) == 1 and len(words) > 1:
            by_rest[(*words[: telling[0]], "*", *words[telling[0] + 1 :])].append(name)
    groups = {rest: {name: SPLITS[_split_word(name)] for name in group} for rest, group in by_rest.items()}
    groups = {rest: group for rest, group in groups.items() if "train" in group.values() and len(group) > 1}
    of_images = {rest: group for rest, group in groups.items() if not MASKS & {*rest}}
    groups = of_images or groups
    if len(groups) > 1:
        first, second = (
            next(name for name, split in group.items() if split == "train") for group in list(groups.values())[:2]
        )
        raise ValueError(
            f"{where} has training images in {first!r} and {second!r}, which has two readings: if they are two data "
            f"sets, give one of them as the source; if all is one, rename its folders to train, val and test"
        )
    return _by_split({name: split for group in groups.values() for name, split in group.items()}, where)


def _split_word(name: str) -> str:
    return next(word.casefold() for word in WORD.findall(name) if word.casefold() in SPLITS)


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
