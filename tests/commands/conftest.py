from __future__ import annotations

from pathlib import Path

import pytest

from patchcast.cli import main
from tests.few import few_digits

# Evaluated and saved once, at the end: that takes longer than the steps; and normalized by what would be measured.
TINY = [
    *("--model", "test_vit", "--data", "digits", "--workers", "0"),
    *("--steps", "4", "--batch_size", "16", "--eval_every", "4", "--checkpoint_every", "4"),
    *("--mean", "0.3", "--std", "0.4"),
]
SMALL_MAE = ["--method", "mae", "--method_args", '{"decoder_width": 32, "decoder_depth": 1}']


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, made once; what commands add to it is in the way of none."""
    out = tmp_path_factory.mktemp("runs") / "mae"
    with few_digits(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert main(["pretrain", *SMALL_MAE, *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def _small_runs(few_digits: None) -> None:
    """On few digits, in every module of this folder."""


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep features and codes in the user's cache folder: not in that of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
