"""Files are written whole or not at all, with the permissions of everybody's files; the cache may fail."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import patchcast
from patchcast import cli
from patchcast.files import (
    check_writable,
    full_disk,
    read_weights,
    unfinished_folder,
    write_cache,
    write_text,
    write_weights,
    write_whole,
)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_weights({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
        write_text(tmp_path / "a.txt", "é")
    finally:
        os.umask(before)
    for name in ("a.safetensors", "a.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["x"], torch.zeros(2))
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def half(unfinished: Path) -> None:
        unfinished.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_whole(file, half, sync=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "export"

    def half() -> None:
        with unfinished_folder(out) as unfinished:
            write_text(unfinished / "a.txt", "half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        half()
    assert not out.exists()
    before = os.umask(0o022)
    try:
        with unfinished_folder(out) as unfinished:
            write_text(unfinished / "a.txt", "whole")
            assert not (out / "a.txt").exists()
    finally:
        os.umask(before)
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("a.txt", "whole")]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError(FULL)])
def test_a_full_disk_is_one_sentence_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    file = tmp_path / "a.safetensors"
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_weights({"x": torch.zeros(2)}, file)
    assert full_disk(caught.value) == (
        f"{file} cannot be written: No space left on device; make room, and run the same command again"
    )
    assert not full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_of_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    monkeypatch.setitem(cli.COMMANDS, "models", replace(cli.COMMANDS["models"], run=fail))
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err == (
        "patchcast: a.png cannot be written: No space left on device; make room, and run the same command again\n"
    )


def test_only_one_module_writes_files() -> None:
    """Every other one calls it, so that no file is left half written or with its own permissions."""
    direct = re.compile(
        r"\.write_text\(|\.write_bytes\(|\bsave_file\(|\.savefig\(|\bnp\.savez?\((?!unfinished|file)|\bsave_for_hf\("
    )
    sources = Path(patchcast.__file__).parent
    exempt = {sources / "files.py"}
    offending = [
        f"{path.relative_to(sources)}: {line.strip()}"
        for path in sorted(sources.rglob("*.py"))
        if path not in exempt and "training" not in path.relative_to(sources).parts
        for line in path.read_text().splitlines()
        if direct.search(line) and ">>>" not in line and "unfinished" not in line
    ]
    assert offending == []


def test_a_cache_that_cannot_be_written_gives_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    write = partial(save_file, {"x": torch.zeros(2)})
    with pytest.warns(UserWarning, match="nothing is cached"):
        write_cache(blocked / "features.safetensors", write)
    write_cache(tmp_path / "features.safetensors", write)
    assert (tmp_path / "features.safetensors").exists()


CACHE = """
import os, sys, warnings
from patchcast.files import cache_file
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    file = cache_file(["x"], ".txt")
    assert cache_file(["x"], ".txt") == file
    file.write_text("made")
print(file.parent, len(caught))
"""


@pytest.mark.parametrize("broken", ["not a folder", "no home", "none"])
def test_the_cache_folder_may_fail(tmp_path: Path, broken: str) -> None:
    (tmp_path / "file").write_text("")
    env = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "HOME")}
    if broken == "not a folder":
        env["XDG_CACHE_HOME"] = str(tmp_path / "file" / "cache")
    elif broken == "none":
        env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    # A user whom the machine does not know has no home folder, as in many containers.
    home = "import pathlib\ndef fail(): raise RuntimeError('no home')\npathlib.Path.home = fail\n"
    code = (home if broken == "no home" else "") + CACHE
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    folder, warned = out.rsplit(maxsplit=1)
    if broken == "none":
        assert (folder, warned) == (str(tmp_path / "cache" / "patchcast"), "0")
        assert Path(folder).is_dir()
    else:
        assert warned == "1"
        assert not Path(folder).exists()  # the temporary one is removed at the end


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    """And not the temporary one: of a folder without permission, for example."""

    def fail(unfinished: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(unfinished))

    with pytest.raises(PermissionError, match=r"Permission denied: '.*/probe.json'"):
        write_whole(tmp_path / "probe.json", fail)


def test_where_results_go_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad, sentence in {
        tmp_path: "is a folder; --out names a file",
        tmp_path / "file" / "report.html": "is a file, so",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            check_writable(bad)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(ValueError, match="cannot be written to; give --out FILE in another one"):
        check_writable(closed / "show.png")


def test_the_wheel_has_templates_styles_and_tables() -> None:
    """Hatch packs all files of the listed folder but those that .gitignore names."""
    root = Path(__file__).resolve().parents[1]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/patchcast"]}, "a rule that leaves files out needs a test of its own"
    if not (root / ".git").exists():
        pytest.skip("needs the repository's .gitignore, and this is no checkout")
    files = [
        file for file in (root / "src" / "patchcast").rglob("*") if file.suffix in {".jinja", ".css", ".csv", ".txt"}
    ]
    assert {"page.html.jinja", "parts.html.jinja", "style.css", "support.csv"} <= {file.name for file in files}
    asked = ["git", "-C", str(root), "check-ignore", "--no-index", *map(str, files)]
    found = subprocess.run(asked, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), found.stderr
