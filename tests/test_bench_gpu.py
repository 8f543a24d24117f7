"""`make bench-gpu` runs from beginning to end; what it measures here is of no interest."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def bench(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds to both
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out.strip()
    assert said == "bench-gpu measures on a GPU, and torch sees none here: nothing was measured."


@pytest.mark.slow  # it compiles four networks
def test_the_whole_path(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    said = bench("--device", "cpu", "--quick", "--out", str(out))
    results = json.loads(out.read_text())
    parts = ["MAE", "AIM", "I-JEPA", "ImageGPT", "MAE, compiled", "AIM, compiled", "drawing", "profile"]
    parts += ["with loader", "with loader, decoded on the device"]
    failed = {name: results[name] for name in parts if "failed" in results[name]}
    assert not failed
    assert results["skipped"] == []
    assert all(row["passes"] for row in results["correct"].values())
    assert all(results[name]["share_of_product_rate"] > 0 for name in ("MAE", "AIM", "I-JEPA", "ImageGPT"))
    assert all(results[f"{name}, compiled"]["graphs"] > 0 for name in ("MAE", "AIM", "I-JEPA", "ImageGPT"))
    assert "| MAE, compiled |" in said
    assert out.with_suffix(".md").read_text() in said
    assert (tmp_path / "gpu.profile.txt").read_text()
