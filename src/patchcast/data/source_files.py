"""The files of a source: expand braces, download remote files once, and group files into splits."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track

from patchcast.data.seals import matches_seal, sample_digest, seal
from patchcast.data.split_names import ORDER, PURPOSE, by_split_name, split_of
from patchcast.files import cache_file, write_whole, writing_cache

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class SourceFile:
    """A file by the name that a person gave it, a path or a URL, and where it lies on this machine."""

    name: str
    path: Path

    @property
    def state(self) -> FileState:
        """What changes when the file does."""
        status = self.path.stat()
        return FileState(str(self.path.resolve()), status.st_size, status.st_mtime_ns, sample_digest(self.path))


class FileState(NamedTuple):
    """Where a file lies, its size, its time of change in nanoseconds, and a hash of a sample of its bytes."""

    path: str
    size: int
    changed: int
    sample: str


def written_out(pattern: str) -> list[str]:
    """A pattern with braces as the shell and WebDataset write it, written out.

    >>> written_out("shard-{008..010}.tar")
    ['shard-008.tar', 'shard-009.tar', 'shard-010.tar']
    >>> written_out("{train,val}-{0..1}.tar")
    ['train-0.tar', 'train-1.tar', 'val-0.tar', 'val-1.tar']
    """
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    span = RANGE.fullmatch(braces[1])
    parts = braces[1].split(",")
    if span is not None:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ValueError(f"{pattern} counts backwards: {braces[0]}")
        parts = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [found for part in parts for found in written_out(before + part + after)]


def is_url(source: str) -> bool:
    return "://" in source


def find_files(pattern: str) -> list[SourceFile]:
    """The files of a path or URL, perhaps with braces; remote ones are fetched into the user's cache folder.

    Raises:
        ValueError: in one sentence, if one is not there or cannot be fetched.
    """
    names = written_out(pattern)
    if is_url(pattern):
        shown = track(names, "fetching", console=Console(stderr=True), transient=True, disable=len(names) < 2)
        return [SourceFile(name, fetch(name)) for name in shown]
    files = [SourceFile(name, Path(name).expanduser()) for name in names]
    missing = [file.name for file in files if not file.path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is not there" + (f", and {len(missing) - 1} more" if missing[1:] else ""))
    return files


def fetch(url: str) -> Path:
    """A copy of a remote file in the user's cache folder; made once, and again when the remote file changes.

    Raises:
        ValueError: in one sentence, if it cannot be fetched.
    """
    try:
        import fsspec
    except ModuleNotFoundError as problem:
        raise ValueError(f"{url} is remote, which needs fsspec: pip install 'patchcast[data]'") from problem
    try:
        system, path = fsspec.core.url_to_fs(url)
        copy = cache_file(["remote", url, str(system.ukey(path))], Path(path).suffix)
        if not matches_seal(copy):
            with writing_cache(copy.parent):
                write_whole(copy, lambda unfinished: system.get_file(path, str(unfinished)))
                seal(copy)
    except Exception as problem:  # every file system raises its own: botocore's, aiohttp's, a missing package's ...
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise ValueError(f"{url} cannot be fetched: {reason}") from problem
    return copy


File = TypeVar("File", SourceFile, Path)


def by_split(files: Sequence[File]) -> dict[str, list[File]]:
    """Files by the splits that their names tell: `train-00000-of-00002.parquet`, `imagenet-val-0003.tar`,
    `validation/0000.parquet`. Where they tell one split or none, all are `train`.

    >>> list(by_split([Path("train-0.tar"), Path("a/val/1.tar")])), list(by_split([Path("val-0.tar")]))
    (['train', 'val'], ['train'])

    Raises:
        ValueError: if it is not clear which split a file is of.
    """
    paths = [file if isinstance(file, Path) else Path(file.name) for file in files]
    words = [_words(path) for path in paths]
    # A word of all names, such as that of a folder which holds all the files, tells none of them apart.
    common = set.intersection(*map(set, words)) if len(words) > 1 else set()
    groups: dict[str, list[File]] = {}
    split_words: dict[str, None] = {}
    unnamed: list[File] = []
    for file, path, own in zip(files, paths, words, strict=True):
        prefix = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        telling = {word: split for word in own if word not in common and (split := split_of(word)) is not None}
        if prefix != path.stem and split_of(prefix) is None:
            groups.setdefault(prefix, []).append(file)  # `unsupervised-00000-of-00001` is a split of its own
        elif not telling:
            unnamed.append(file)
        elif len({PURPOSE[split] for split in telling.values()}) > 1:
            first, second = list(telling)[:2]
            raise ValueError(f"{path} could be of the split {first!r} or {second!r}: leave one of them out of its name")
        else:
            word, split = next(iter(telling.items()))
            split_words.setdefault(word)
            groups.setdefault(split, []).append(file)
    by_split_name(split_words, os.path.commonpath([path.parent for path in paths]) or "the source")
    if unnamed and list(groups) == ["train"]:
        others = _first_of(groups["train"])
        warnings.warn(f"{_first_of(unnamed)} tells no split: it is trained on too, next to {others}", stacklevel=2)
    if unnamed:
        without = groups.setdefault("train", unnamed)
        if without is not unnamed and len(groups) > 1:
            warnings.warn(_passed_over(unnamed, list(groups)), stacklevel=2)
    if len(groups) < 2:
        return {"train": list(files)}
    return {name: groups[name] for name in dict.fromkeys([*ORDER, *sorted(groups)]) if name in groups}


def _words(path: Path) -> list[str]:
    """The parts of a file's name, then the folders that it lies in, from the innermost on."""
    words = (*re.split(r"[-_.]", path.stem), *reversed(path.parent.parts))
    return [re.sub(r"(?<=\w)\d+$", "", word).casefold() for word in words]


def _passed_over(files: Sequence[File], splits: list[str]) -> str:
    return f"passed over {_first_of(files)}: the name tells none of the splits {', '.join(splits)}"


def _first_of(files: Sequence[File]) -> str:
    names = [str(file if isinstance(file, Path) else file.name) for file in files]
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")
