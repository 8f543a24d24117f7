"""A run on a stream of Hugging Face's, killed and gone on with: the same weights, and the same log, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.data import streamed
from patchcast.training.log import read_metrics
from tests.data.test_tar import png
from tests.training.test_looks import MODELS
from tests.training.test_recovery import kill_after_a_checkpoint

datasets = pytest.importorskip("datasets")
COUNT, BROKEN = 60, 7


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sixty images in two files, one of them broken."""
    for name, value in {"XDG_CACHE_HOME": tmp_path, "HF_DATASETS_CACHE": tmp_path / "hf", "HF_HUB_OFFLINE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, rows in enumerate(np.split(np.arange(COUNT), 2)):
        images = [{"bytes": png(row)[: 50 if row == BROKEN else None], "path": None} for row in rows.tolist()]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(folder / f"train-{number}.parquet")
    return f"hf-stream:{folder}"


def test_a_run_on_a_stream_is_killed_and_goes_on(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the end of a window, which holds the stream several times over: here of 512 images, not of 2,048."""
    monkeypatch.setattr(streamed, "WINDOW", 512)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    often = ["--steps", "48", "--batch_size", "16", "--checkpoint_every", "5", "--eval_every", "32"]
    small = [*MODELS["mae"], "--image_size", "8"]
    command = ["pretrain", "--method", "mae", *small, "--data", source, *often, "--no_pictures"]
    kill_after_a_checkpoint([*command, "--out", str(broken)], broken)
    assert main([*command, "--out", str(broken)]) == 0
    assert main([*command, "--out", str(whole)]) == 0
    one, two = (load_file(out / "pretrainer.safetensors") for out in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    rows = [
        [(row["step"], row["loss"], row["lr"]) for row in read_metrics(out / "metrics.csv")] for out in (whole, broken)
    ]
    assert rows[0] == rows[1]
    for out in (whole, broken):
        assert [f", row {BROKEN}\t" in line for line in (out / "bad-images.txt").read_text().splitlines()] == [True]
