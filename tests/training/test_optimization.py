from __future__ import annotations

from functools import partial

import pytest

from patchcast.schedules import warmup_cosine


def test_rate_warms_up_and_falls_to_zero():
    scale = partial(warmup_cosine, steps=20, warmup=0.2)
    assert [scale(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert scale(12) == pytest.approx(0.5)
    assert scale(20) == pytest.approx(0.0)
    assert warmup_cosine(0, steps=1, warmup=0.1) == 1.0
