from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.few import few_digits


@pytest.fixture(scope="module", autouse=True)
def _small_runs(few_digits: None) -> None:
    """On few digits, in every module of this folder."""


@pytest.fixture(autouse=True)
def _runs_without_figures(_no_figures: None) -> None:
    """In every test of this folder."""


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def copied(run: Path, out: Path) -> Path:
    """A copy of a run, as if it had been trained there."""
    config = (shutil.copytree(run, out) / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace(str(run), str(out)))
    return out


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of MAE, made once for the tests that only start from it."""
    from tests.starts.test_started_runs import pretrain

    out = tmp_path_factory.mktemp("first") / "run"
    with few_digits(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert pretrain(out) == 0
    return out
