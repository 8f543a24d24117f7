"""`torch.compile` without a graph break: backbones, backbones over tiles, and pretrainers that draw their own plans.

All in one process, whose start costs more than the checks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backbones.zoo import NAMES

ROOT = Path(__file__).resolve().parents[1]
FEW = ["hiera_tiny_224"]
"""It drops its units in groups; AIM is over a plain transformer."""


def compile_all(checks: list[str]) -> None:
    """Each check is a line of tests/compiled.py, 'backbone:hiera_tiny_224' for example."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.compiled", *checks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == checks, done.stderr[-3000:]


def test_compile() -> None:
    backbones = [f"backbone:{name}" for name in FEW if name in NAMES]
    compile_all([*backbones, "pretrainer:aim"])


@pytest.mark.slow
def test_compile_every_class() -> None:
    compile_all([*(f"backbone:{name}" for name in NAMES), "tiles:plain", "tiles:rotary", "pretrainer:simmim"])
