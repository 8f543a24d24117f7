"""Damaged and hostile files: every reader gives one sentence, in an error of ours, and runs nothing.

Bytes are flipped, cut and put in at random, from fixed seeds. What still reads after that may be read.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from patchcast.data import open_images
from patchcast.data.decode import UnreadableImageError, decode, read_header
from patchcast.files import read_weights
from patchcast.tokenizers.loading import load_tokenizer
from patchcast.tokenizers.palette import Palette
from patchcast.tokenizers.patches import PatchCodebook

ROUNDS = 60
RAN: list[str] = []


def run(what: str) -> None:
    RAN.append(what)


class Evil:
    """Says so if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return run, ("a pickle was run",)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 6), value).save(file, "png")
    return file.getvalue()


def palette(path: Path) -> None:
    Palette(torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1).save(path)


def codebook(path: Path) -> None:
    PatchCodebook(torch.rand(6, 4), (2, 2)).save(path)


def safetensors(path: Path) -> None:
    save_file({"a": torch.rand(5, 3), "b": torch.arange(7)}, path)


def checkpoint(path: Path) -> None:
    torch.save({"a": torch.rand(5, 3), "b": {"c": [1, "two", 3.0]}}, path)


def shard(path: Path) -> None:
    with tarfile.open(path, "w") as out:
        for number in range(6):
            for name, content in ((f"{number}.png", png(number)), (f"{number}.cls", b"%d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))


def table(path: Path) -> None:
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in range(6)]
    pq.write_table(pa.table({"image": images, "label": list("abcabc")}), path, row_group_size=2)


def read_source(path: Path) -> None:
    images = open_images(str(path))
    for index in range(len(images)):
        assert images[index].image.shape[0] == images.channels


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "palette.npy": (palette, load_tokenizer),
    "palette.safetensors": (palette, load_tokenizer),
    "codebook.safetensors": (codebook, load_tokenizer),
    "weights.safetensors": (safetensors, read_weights),
    "weights.pth": (checkpoint, read_weights),
    "shard.tar": (shard, read_source),
    "table.parquet": (table, read_source),
}


def damaged(whole: bytes, chance: np.random.Generator) -> bytes:
    """A few bytes flipped, most of them where headers lie; or cut off, doubled, or zeros put in."""
    content = bytearray(whole)
    kind = chance.integers(6)
    place = int(chance.integers(len(content)))
    if kind < 3:
        reach = len(content) if kind == 0 else min(len(content), 600)
        for at in chance.integers(reach, size=int(chance.integers(1, 6))):
            content[-at - 1 if kind == 2 else at] = int(chance.integers(256))
    elif kind == 3:
        del content[place:]
    elif kind == 4:
        content[place : place + 40] = bytes(40)
    else:
        content[place:place] = content[place : place + 64]
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # of what was skipped, and of the damage
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write, read = READERS[name]
    file = tmp_path / name
    write(file)
    read(file)
    whole, chance = file.read_bytes(), np.random.default_rng(7)
    problems: list[Exception] = []
    for _ in range(ROUNDS):
        file.write_bytes(damaged(whole, chance))
        try:
            read(file)
        except (ValueError, OSError) as problem:
            problems.append(problem)
    assert problems, "the damage was too small to be a test"
    for problem in problems:
        assert type(problem).__module__ == "builtins", f"not ours: {problem!r}"
        assert "\n" not in str(problem)
        assert name.partition(".")[0] in str(problem), f"does not say which file: {problem!r}"


OTHER = [b"", b"\0" * 100, b"words", np.random.default_rng(3).bytes(3000)]


@pytest.mark.parametrize("content", OTHER, ids=["none", "zeros", "words", "noise"])
@pytest.mark.parametrize("name", READERS)
def test_files_of_something_else(name: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=name) as caught:
        READERS[name][1](file)
    assert "\n" not in str(caught.value)


def hostile() -> dict[str, bytes]:
    """Files that run code if they are unpickled."""
    zipped, saved, array, listed = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"a": Evil()}, saved)
    np.save(array, np.array([Evil()], dtype=object))
    np.savez(listed, colors=np.array([Evil()], dtype=object))
    with zipfile.ZipFile(zipped, "w") as out:
        out.writestr("archive/data.pkl", pickle.dumps(Evil()))
    return {
        "pickle": pickle.dumps({"a": Evil()}),
        "torch": saved.getvalue(),
        "zip": zipped.getvalue(),
        "npy": array.getvalue(),
        "npz": listed.getvalue(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", hostile())
@pytest.mark.parametrize("name", [*READERS, "image.npy", "image.tif", "image.png"])
def test_no_pickle_is_run(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(hostile()[kind])
    with pytest.raises((ValueError, OSError)) as caught:
        (READERS[name][1] if name in READERS else lambda path: open_images(str(path.parent)))(file)
    assert RAN == []
    assert "\n" not in str(caught.value)


def test_the_evil_would_run() -> None:
    """Otherwise the tests above could not fail."""
    pickle.loads(pickle.dumps(Evil()))
    assert RAN == ["a pickle was run"]
    RAN.clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_damaged_arrays_raise_nothing_else(kind: str) -> None:
    array = np.random.default_rng(0).integers(0, 4096, (9, 11, 5), dtype=np.uint16)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig", compression="deflate")
    chance, reasons = np.random.default_rng(1), []
    for _ in range(ROUNDS):
        content = damaged(file.getvalue(), chance)
        try:
            header = read_header(io.BytesIO(content))
            assert decode(io.BytesIO(content), header.channels or 3).shape[1:] == header.size
        except UnreadableImageError as problem:
            reasons.append(str(problem))
    assert reasons
    assert not any("\n" in reason for reason in reasons)
