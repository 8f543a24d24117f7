"""Run folders that an earlier version wrote still open, and unfinished ones resume to the same weights.

`runs_before/` holds a small run of every method, made by patchcast 0.1 as of November 2026: six steps on digits, with
the checkpoint of step 3. They are read and never made again: what users have was written by such a version.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchcast.cli import main

pytestmark = pytest.mark.usefixtures("_no_figures")

BEFORE = Path(__file__).parent / "runs_before"
RUNS = sorted(folder.name for folder in BEFORE.iterdir())
FINAL = ("pretrainer.safetensors", "model.safetensors", "metrics.json")


def losses(run: Path) -> list[float]:
    rows = csv.DictReader((run / "metrics.csv").open())
    return [float(row["loss"]) for row in rows if row["loss"]]


@pytest.mark.parametrize("method", RUNS)
def test_an_unfinished_run_resumes_to_the_weights_it_had_reached(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `out` of the config is runs/METHOD
    run = tmp_path / "runs" / method
    shutil.copytree(BEFORE / method, run)
    for name in FINAL:
        (run / name).unlink(missing_ok=True)
    config = (run / "config.yaml").rename(tmp_path / "recipe.yaml")
    shutil.copy(config, run / "config.yaml")

    assert main(["pretrain", "--config", str(config), "--out", f"runs/{method}"]) == 0

    reached, before = (load_file(folder / FINAL[0]) for folder in (run, BEFORE / method))
    halfway = torch.load(BEFORE / method / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
    assert reached.keys() == before.keys()
    moved = torch.cat([(before[name] - halfway[f"pretrainer.{name}"]).float().flatten() for name in before]).abs()
    off = torch.cat([(before[name] - reached[name]).float().flatten() for name in before]).abs()
    assert off.mean() < 0.05 * moved.mean()  # 0 on the machine that made them; other processors round differently
    assert losses(run) == pytest.approx(losses(BEFORE / method), rel=1e-3)


@pytest.mark.parametrize("method", RUNS)
def test_a_finished_run_opens_and_is_exported(method: str, tmp_path: Path) -> None:
    run = tmp_path / method
    shutil.copytree(BEFORE / method, run)
    if method == "imagegpt_masked":  # transformers has no place for it, and timm none for ImageGPT
        assert main(["sample", str(run)]) == 2
        return
    assert main(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    before = load_file(BEFORE / method / "model.safetensors")
    # An untrained head of 1,000 classes is no longer written.
    assert exported.keys() == before.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(weight, before[name]) for name, weight in exported.items())
