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
FEW = ["vit_tiny_patch16_224"]
"""In all of its ways to run."""


def compile_all(checks: list[str]) -> None:
    """Each check is a kind of tests/compiled.py and a name, 'backbone:hiera_tiny_224' for example."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.compiled", *checks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == checks, done.stderr[-3000:]


def test_compile() -> None:
    backbones = [f"backbone:{name}" for name in FEW if name in NAMES]
    compile_all([*backbones, "pretrainer:aim", "examples:patchcast.honesty"])


@pytest.mark.slow
def test_compile_every_class() -> None:
    compile_all([*(f"backbone:{name}" for name in NAMES), "tiles:plain", "tiles:rotary", "pretrainer:simmim"])
