from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _small_runs(few_digits: None) -> None:
    """On few digits, in every module of this folder."""
