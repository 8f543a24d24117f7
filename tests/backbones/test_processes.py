"""DDP and FSDP2 on two real ranks, and exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backbones.sharded import check_all
from tests.backbones.zoo import NAMES
from tests.forked import fork_ranks

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "vit_tiny_patch16_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "naflexvit_base_patch16_gap",
    "beit_base_patch16_224",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
]


def shard_all(names: list[str], folder: Path) -> None:
    names = [name for name in names if name in NAMES]
    first, second = fork_ranks(lambda rank: check_all(names, rank), 2, folder)
    assert [line for line in first.splitlines() if line.endswith("sharded")] == [f"{name} sharded" for name in names]
    assert "sharded" not in second


def test_ddp_and_fsdp2(tmp_path: Path) -> None:
    shard_all(FEW, tmp_path)


@pytest.mark.slow
def test_ddp_and_fsdp2_every_class(tmp_path: Path) -> None:
    shard_all(NAMES, tmp_path)


@pytest.mark.slow
def test_export_every_class() -> None:
    """In a process of its own: the shape checks of the test suite break exports."""
    pytest.importorskip("onnxscript", reason="ONNX needs the extra: pip install patchcast[export]")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.backbones.exported", *NAMES],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=10_000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    exported = [line for line in done.stdout.splitlines() if line.endswith("exported")]
    assert exported == [f"{name} exported" for name in NAMES]
