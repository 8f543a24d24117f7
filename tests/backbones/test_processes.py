"""DDP and FSDP2 in two real processes, and exports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backbones.zoo import NAMES

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "vit_tiny_patch16_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "naflexvit_base_patch16_gap",
    "beit_base_patch16_224",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", f"tests.backbones.{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], names: list[str], word: str) -> None:
    output, _ = process.communicate(timeout=3000)
    assert process.returncode == 0, output[-3000:]
    assert [line for line in output.splitlines() if line.endswith(word)] == [f"{name} {word}" for name in names]


def shard_all(names: list[str]) -> None:
    names = [name for name in names if name in NAMES]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    first, second = (start("sharded", rank, port, *names) for rank in ("0", "1"))
    finish(first, names, "sharded")
    finish(second, [], "sharded")


def test_ddp_and_fsdp2() -> None:
    shard_all(FEW)


@pytest.mark.slow
def test_ddp_and_fsdp2_every_class() -> None:
    shard_all(NAMES)


@pytest.mark.slow
def test_export_every_class() -> None:
    pytest.importorskip("onnxscript", reason="ONNX needs the extra: pip install patchcast[export]")
    finish(start("exported", *NAMES), NAMES, "exported")
