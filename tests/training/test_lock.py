"""Two runs are never started into one folder at the same time, and a killed one holds nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from patchcast.runs.run_folder import holds_run
from patchcast.training.lock import LOCK, locked
from tests.forked import Forked, fork


def hold(run: Path, letting_go: Path) -> Forked:
    """A process that holds the lock of a run until there is another file."""

    def work() -> None:
        with locked(run):
            print("held")
            while not letting_go.exists():
                time.sleep(0.01)

    process = fork(work, run.with_suffix(".txt"))
    process.until(lambda: process.printed.exists() and process.printed.read_text())
    return process


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_the_second_is_refused_until_the_first_has_ended(run: Path, tmp_path: Path) -> None:
    process = hold(run, tmp_path / "go")
    with pytest.raises(ValueError, match=rf"^process {process.pid} on .* is training the run in "), locked(run):
        pass
    (tmp_path / "go").touch()
    assert process.wait() == (0, "held\n")
    assert not (run / LOCK).exists()
    with locked(run):
        pass


def test_a_dead_holder_holds_nothing(run: Path, tmp_path: Path) -> None:
    process = hold(run, tmp_path / "go")
    process.kill()
    process.wait()
    assert (run / LOCK).exists()
    with locked(run):
        pass


def test_a_folder_in_which_another_process_writes_its_config_is_new(tmp_path: Path) -> None:
    """Four processes of one run look into its folder while the first creates it."""
    (tmp_path / ".config.0123456789ab.yaml").touch()
    (tmp_path / ".lock").touch()
    assert not holds_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        holds_run(tmp_path)
