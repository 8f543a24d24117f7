"""Two runs are never started into one folder at the same time, and a killed one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patchcast.runs.run_folder import holds_run
from patchcast.training.lock import LOCK, locked

HOLD = """
import sys
from pathlib import Path
from patchcast.runs.run_folder import holds_run
from patchcast.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(ValueError, match=rf"^process {process.pid} on .* is training the run in "), locked(tmp_path):
        pass
    process.communicate()
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_a_folder_in_which_another_process_writes_its_config_is_new(tmp_path: Path) -> None:
    """Four processes of one run look into its folder while the first creates it."""
    (tmp_path / ".config.0123456789ab.yaml").touch()
    (tmp_path / ".lock").touch()
    assert not holds_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        holds_run(tmp_path)
