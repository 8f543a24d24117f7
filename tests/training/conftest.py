from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _small_runs(few_digits: None) -> None:
    """On few digits, in every module of this folder."""


@pytest.fixture(autouse=True)
def _runs_without_figures(_no_figures: None) -> None:
    """In every test of this folder."""
