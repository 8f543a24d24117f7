"""The meaning of folders around images (splits or classes), in folders and tar files."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from patchcast.data.companions import image_folder
from patchcast.data.split_names import PURPOSE, by_split_name, by_split_word, split_of


@dataclass
class FolderPart:
    """The images of one split.

    Attributes:
        folder: that all of them lie in, "" for the source itself.
        names: of the images, relative to that folder.
        places: of the images among all images of the source.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def arrange(images: Sequence[str], separator: str, where: str) -> dict[str, FolderPart]:
    """Images by split, as their first folders tell: `train` and its neighbors, or all in `train`.

    A single folder around all others is looked into, and its name is no class. Folders that are no splits, next to some
    that are, are passed over and named in a warning.

    >>> parts = arrange(["data/Train/cat/1.png", "data/Valid/cat/2.png"], "/", "photos")
    >>> {split: (part.folder, part.names) for split, part in parts.items()}
    {'train': ('data/Train', ['cat/1.png']), 'val': ('data/Valid', ['cat/2.png'])}

    Args:
        images: paths relative to the source.
        separator: between folders.
        where: the source, for messages.
    Raises:
        ValueError: if the names have two readings; says both.
    """
    around = ""
    while True:
        inside = {place: image[len(around) :] for place, image in enumerate(images) if image.startswith(around)}
        folders = dict.fromkeys(name.partition(separator)[0] for name in inside.values() if separator in name)
        has_loose = any(separator not in name for name in inside.values())
        named = _by_split(folders, where)
        photographs = None if named or has_loose else image_folder(folders)
        if len(folders) != 1:
            break
        # A single folder is looked into: one around all images, or one that holds splits, whatever lies next to it.
        [only] = folders
        if (named or has_loose) and not _has_splits(inside.values(), only, separator, where):
            break
        around += only + separator
    if photographs is not None:
        return _without_masks(images, around, photographs, separator, where)
    if not named:
        _refuse_splits_in_classes(list(inside.values()), separator, where)
        return {"train": FolderPart(around.removesuffix(separator), list(inside.values()), list(inside))}
    parts = {split: FolderPart(around + folder) for split, folder in named.items()}
    by_folder = {folder: parts[split] for split, folder in named.items()}
    others: dict[str, int] = {"": len(images) - len(inside)} if len(inside) < len(images) else {}
    for place, name in inside.items():
        folder, has_separator, rest = name.partition(separator)
        part = by_folder.get(folder) if has_separator else None
        if part is None:
            others[folder if has_separator else ""] = others.get(folder if has_separator else "", 0) + 1
        else:
            part.names.append(rest)
            part.places.append(place)
    if others:
        _check_readings(named, parts, list(others), separator, where)
        counts = (f"{count:,} in {repr(folder) if folder else 'no folder'}" for folder, count in others.items())
        warnings.warn(f"passed over images of {where} that are of no split: {', '.join(counts)}", stacklevel=3)
    return parts if len(parts) > 1 else {"train": next(iter(parts.values()))}


def _by_split(folders: Collection[str], where: str) -> dict[str, str]:
    """The folders that tell a split: by their whole names, or else by one word of them."""
    return by_split_name(folders, where) or by_split_word(folders, where)


def _has_splits(images: Collection[str], folder: str, separator: str, where: str) -> bool:
    """Whether a folder holds the training split and another one."""
    start = folder + separator
    rest = [image[len(start) :] for image in images if image.startswith(start)]
    named = _by_split(dict.fromkeys(name.partition(separator)[0] for name in rest if separator in name), where)
    return "train" in named and len(named) > 1


def _without_masks(
    images: Sequence[str], around: str, photographs: str, separator: str, where: str
) -> dict[str, FolderPart]:
    """The splits of the folder of images, without those of masks next to it."""
    folder = around + photographs + separator
    places = [place for place, image in enumerate(images) if image.startswith(folder)]
    counts = Counter(image[len(around) :].partition(separator)[0] for image in images)
    masks = ", ".join(f"{count:,} in {name!r}" for name, count in sorted(counts.items()) if name != photographs)
    warnings.warn(f"passed over masks of {where}, next to {photographs!r}: {masks}", stacklevel=4)
    parts = arrange([images[place][len(folder) :] for place in places], separator, where)
    return {
        split: FolderPart(
            (folder + part.folder).removesuffix(separator), part.names, [places[place] for place in part.places]
        )
        for split, part in parts.items()
    }


def _check_readings(
    named: dict[str, str], parts: dict[str, FolderPart], others: list[str], separator: str, where: str
) -> None:
    """Refuse a folder that may be a split or a class, with both readings."""
    if "train" in named and (len(named) > 1 or others == [""] or _has_classes(parts["train"], separator)):
        return
    split, name = next(iter(named.items()))
    neighbors = ", ".join(repr(folder) if folder else "images in no folder" for folder in others[:3])
    more = f" and {len(others) - 3} more" if others[3:] else ""
    training = "" if split == "train" else ", move what is for training into a folder 'train'"
    aside = ", move the others away" if split == "train" else ""
    raise ValueError(
        f"{where} has a folder {name!r} next to {neighbors}{more}, which has two readings: if {name!r} is the "
        f"{PURPOSE[split]} split{training}{aside}; if it is a class, rename it (such as {name + '_class'!r})"
    )


def _has_classes(part: FolderPart, separator: str) -> bool:
    folders = {name.partition(separator)[0] for name in part.names if separator in name}
    return len(folders) > 1 and all(separator in name for name in part.names)


def _refuse_splits_in_classes(images: list[str], separator: str, where: str) -> None:
    """Splits inside of class folders (`cat/train`, `cat/test`) are not read as one training set."""
    for image in images:
        folder, _, rest = image.partition(separator)
        inner, has_separator, _ = rest.partition(separator)
        split = split_of(inner) if has_separator else None
        if split in (None, "train"):
            continue
        other = [name for name in images if name.startswith(folder + separator)]
        inners = {name.split(separator)[1] for name in other if name.count(separator) > 1}
        if any(split_of(name) == "train" for name in inners):
            raise ValueError(
                f"{where} has {inner!r} inside the folder {folder!r}: splits are the outer folders and classes the "
                f"inner ones, so that all would be trained on; make it {inner}{separator}{folder}"
            )
        return
