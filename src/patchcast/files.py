"""Files: weights read without running code, files written whole or not at all, and the cache folder."""

from __future__ import annotations

import argparse
import atexit
import errno
import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

UNFINISHED = re.compile(r"^\..*\.[0-9a-f]{12}(\.[^.]*)?$")
"""Names of the temporary files of `write_whole` and folders of `unfinished_folder`."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a write for which there is no room."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a file of weights: safetensors, or a file of `torch.save`, of which only plain values are read.

    >>> read_weights("nowhere.pth")
    Traceback (most recent call last):
    FileNotFoundError: there is no file nowhere.pth

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: in one sentence, if it is broken, or if it holds more than tensors and plain values, which could run
            code: none of it is run.
    """
    import torch  # here, so that writing a file needs no torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The papers' training scripts save their command-line arguments with the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise ValueError(
            f"{path} is broken, or holds more than tensors and plain values, which could run code: it is not read"
        ) from problem
    except Exception as problem:  # a broken file can raise nearly anything: zip's, struct's, safetensors' ...
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise ValueError(f"{path} cannot be read as weights: {reason}") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, and no weights by their names")
    return content


def write_weights(weights: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all: see `write_whole`. Hugging Face's libraries read it too."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(unfinished: Path) -> None:
        try:
            save_file(dict(weights), unfinished, {"format": "pt", **(metadata or {})})
        except SafetensorError as problem:  # it reports a full disk as text only
            for number in FULL_DISK:
                if f"os error {number})" in str(problem):
                    raise OSError(number, os.strerror(number), str(file)) from problem
            raise

    write_whole(file, write)


def write_whole(file: str | Path, write: Callable[[Path], object], *, sync: bool = False) -> None:
    """Have `write` fill a temporary file in the same folder, and rename it: no process leaves a half-written file.

    The file gets the permissions that `open` would give it (the umask's), whatever `write` does.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "a" / "b.txt", lambda unfinished: unfinished.write_text("hello"))
    >>> (folder / "a" / "b.txt").read_text(), len(list((folder / "a").iterdir()))
    ('hello', 1)

    Args:
        file: its folder is created if there is none.
        write: called with the path of the temporary file, which has the same suffix.
        sync: wait until the data is on the disk, so that a power cut leaves the old or the new file (checkpoints).
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other process has, on this machine or on another one that shares the folder.
    unfinished = file.with_name(f".{file.stem}.{uuid4().hex[:12]}{file.suffix}")
    try:
        unfinished.touch(exist_ok=False)
        mode = stat.S_IMODE(unfinished.stat().st_mode)
        write(unfinished)
        unfinished.chmod(mode)  # safetensors replaces the file by one that only its owner can read
        if sync:
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
        unfinished.replace(file)
    except OSError as problem:
        if problem.errno in FULL_DISK or problem.filename == str(
            unfinished
        ):  # the error names the file that was wanted
            raise OSError(problem.errno, problem.strerror, str(file)) from problem
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(file: Path) -> Path:
    """The file, if it can be written; checked before the work whose result goes there.

    >>> import tempfile
    >>> check_writable(Path(tempfile.gettempdir()) / "new" / "report.html").name
    'report.html'
    >>> check_writable(Path(tempfile.gettempdir()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ... is a folder; --out names a file

    Raises:
        ValueError: if it is a folder, or its folder cannot be written to.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a folder; --out names a file")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, so {file} cannot be written; give another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {folder} cannot be written to; give --out FILE in another one")
    return file


@contextmanager
def unfinished_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, whose files move into `folder` if the block ends without an error.

    For writers that leave several files, or that check what they wrote. After an error nothing is left, and `folder`
    is removed if it did not exist before.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "new"
    >>> with unfinished_folder(folder) as unfinished:
    ...     _ = (unfinished / "a.txt").write_text("hello")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{folder.resolve().name}.{uuid4().hex[:12]}"
    unfinished.mkdir()
    try:
        yield unfinished
        for file in sorted(unfinished.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it is not empty: everything was written
                folder.rmdir()


def full_disk(problem: BaseException | None) -> str:
    """One sentence if an error, or what it was raised from, is a full disk; empty if not.

    >>> full_disk(OSError(errno.ENOSPC, "No space left on device", "a/b.png"))
    'a/b.png cannot be written: No space left on device; make room, and run the same command again'
    """
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in FULL_DISK:
            what = problem.filename or "a file"
            return f"{what} cannot be written: {problem.strerror}; make room, and run the same command again"
        problem = problem.__cause__
    return ""


def read_json(file: str | Path) -> Any:
    """What a JSON file of ours holds.

    Raises:
        ValueError: if it is damaged; says how to get it back.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as problem:  # also UnicodeDecodeError
        raise ValueError(
            f"{file} is damaged ({problem}); remove it, or run the command that wrote it again"
        ) from problem


def write_text(file: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all: see `write_whole`. Names of files that are not UTF-8 pass."""
    write_whole(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_json(file: str | Path, content: Any) -> None:
    """Write JSON for people and programs, whole or not at all: see `write_whole`."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_figure(figure: Figure, file: str | Path) -> None:
    """Write a figure of matplotlib, whole or not at all; as PNG if the file has no suffix."""
    file = Path(file)
    kind = file.suffix.removeprefix(".") or "png"
    for text in [*figure.texts, *(axes.title for axes in figure.axes)]:
        text.set_parse_math(False)  # "$" in the name of a run's data begins no formula
    write_whole(file.with_suffix(f".{kind}"), lambda unfinished: figure.savefig(unfinished, dpi=120, format=kind))


def write_cache(file: Path, write: Callable[[Path], object]) -> None:
    """`write_whole` for a file that can be made again: a full or read-only disk gives one warning, and no error."""
    try:
        with writing_cache(file.parent):
            write_whole(file, write)
    except OSError as problem:
        _warn_once(f"the cache {file.parent} cannot be written ({problem.strerror or problem}): nothing is cached")


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder of caches while a file is written there; any number of processes can.

    Who comes while nobody writes removes the temporary files that killed processes left there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        with suppress(OSError):  # another process writes, or the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.iterdir():
                if UNFINISHED.search(left.name):
                    left.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def cache_folder() -> Path:
    """The folder for what can be made again: `$XDG_CACHE_HOME/patchcast`, or `~/.cache/patchcast`.

    Where neither can be created or written, it is a temporary folder of this process, and a warning says so.
    """
    wanted = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(wanted) if wanted else Path.home() / ".cache") / "patchcast"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} cannot be written"
    except (OSError, RuntimeError) as problem:  # RuntimeError: there is no home folder
        reason = str(problem)
    _warn_once(f"no cache folder ({reason}): a temporary one is used; set XDG_CACHE_HOME to another one")
    return _temporary_folder()


def cache_file(what: Any, suffix: str) -> Path:
    """The file in the cache folder that belongs to `what` (anything that JSON can hold), whether it exists or not."""
    return cache_folder() / (hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32] + suffix)


@cache
def _temporary_folder() -> Path:
    folder, owner = Path(tempfile.mkdtemp(prefix="patchcast-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked worker ends earlier, and shares the folder
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
