"""Checksums of cached files: damaged files are written again, and never read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from patchcast.files import write_text

DIGEST_LIMIT = 2**30
"""Bytes up to which the whole file is hashed; of a larger one a sample, so that it opens in a second."""
BLOCK, BLOCKS = 4096, 4096
FEW_BLOCKS = 16


def sample_digest(file: Path, blocks: int = FEW_BLOCKS) -> str:
    """A hash of evenly spaced blocks of a file, the first and the last among them."""
    digest = hashlib.blake2b(digest_size=16)
    size = file.stat().st_size
    with file.open("rb") as opened:
        for number in range(blocks):
            opened.seek(max(0, size - BLOCK) * number // max(1, blocks - 1))
            digest.update(opened.read(BLOCK))
    return digest.hexdigest()


def seal(file: Path) -> None:
    """Write next to a finished file what `is_whole` compares it with."""
    write_text(seal_of(file), json.dumps(_content(file)))


def matches_seal(file: Path) -> bool:
    """Whether a file is there and is as it was when it was sealed.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.bin"
    >>> _ = file.write_bytes(bytes(100)); seal(file)
    >>> matches_seal(file), file.write_bytes(bytes(99)), matches_seal(file)
    (True, 99, False)
    """
    try:
        return bool(json.loads(seal_of(file).read_text()) == _content(file))
    except (OSError, ValueError):
        return False


def seal_of(file: Path) -> Path:
    return file.with_name(file.name + ".seal")


def _content(file: Path) -> dict[str, int | str]:
    size = file.stat().st_size
    if size > DIGEST_LIMIT:
        return {"size": size, "sample": sample_digest(file, BLOCKS)}
    with file.open("rb") as opened:
        return {
            "size": size,
            "digest": hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest(),
        }
