"""`patchcast probe` on runs and on timm's models, and the cache that it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.cli import main
from patchcast.evaluation import FinetuneResult, finetune
from patchcast.evaluation.features import fingerprint
from patchcast.evaluation.labeled import labels_of, open_labeled
from patchcast.runs.network import open_network, torch_device
from patchcast.runs.subjects import feature_cache

FEW = ["--draws", "2", "--per_class", "2", "--limit", "200"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a mistake is answered with."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_a_run_its_start_and_pixels(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(finished), *FEW, "--lidar", "2"]) == 0
    told = capsys.readouterr().out
    assert all(
        word in told for word in ("RankMe", "alpha-ReQ", "LiDAR", "vs untrained: ", "vs random convolutions: ", "kNN")
    )
    found = json.loads((finished / "probe.json").read_text())
    assert found["command"] == f"patchcast probe {finished} --draws 2 --per_class 2 --limit 200 --lidar 2"
    for name in ("pretrained", "untrained"):
        assert found[name]["knn"]["k"] in (1, 5, 10, 20, 50)
        assert found[name]["knn"]["by_k"]["20"] == found[name]["knn_20"]
        assert 1 < found[name]["rankme"] < 64
        assert found[name]["lidar"] >= 1
        assert found[name]["linear"]["low"] < found[name]["linear"]["value"] < found[name]["linear"]["high"]
    for name in ("raw pixels", "image statistics", "random convolutions"):
        assert "rankme" not in found[name]
        assert name in found["differences"]
    gained = found["differences"]["untrained"]
    between = found["pretrained"]["linear"]["value"] - found["untrained"]["linear"]["value"]
    assert gained["value"] == pytest.approx(between)


def test_a_model_of_timm_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found" / "vit.json"
    data = tmp_path / "images"
    for split, count in (("train", 12), ("test", 4)):
        for label, gray in (("dark", 60), ("bright", 180)):
            (data / split / label).mkdir(parents=True)
            for place in range(count):
                pixels = np.full((40, 40, 3), gray + place, dtype=np.uint8)
                Image.fromarray(pixels).save(data / split / label / f"{place}.png")
    options = ["--untrained", "--data", str(data), "--draws", "2", "--per_class", "2", "--device", "cpu"]
    assert main(["probe", "test_vit", *options, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found) >= {"network", "data", "untrained", "raw pixels"}
    assert "pretrained" not in found, "its weights were not asked for"
    assert found["raw pixels"]["linear"]["value"] == 1.0, "one is dark, the other bright"
    capsys.readouterr()
    assert "has no data: give --data" in said(capsys, "probe", "test_vit", "--untrained")
    assert "did you mean test_vit" in said(capsys, "probe", "test_vot", "--untrained", "--data", "digits")
    assert "holds no run of patchcast" in said(capsys, "probe", str(tmp_path), "--data", "digits")


def test_the_untrained_network_of_a_run_is_the_one_it_started_from(finished: Path) -> None:
    trained = open_network(finished)
    start = open_network(finished, untrained=True)
    assert fingerprint(start.backbone) == fingerprint(trained.before()) != fingerprint(trained.backbone)
    assert start.recipe == trained.recipe


def test_features_are_kept_and_taken_again(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def layers(*options: str) -> dict[str, object]:
        out = tmp_path / f"{len(list(tmp_path.glob('*.json')))}.json"
        assert main(["probe", str(finished), "--layers", "5", "--limit", "100", "--out", str(out), *options]) == 0
        return {**json.loads(out.read_text()), "command": ""}

    first = layers("--no_cache")
    assert not feature_cache().exists()
    assert layers() == first
    kept = list(feature_cache().glob("*/*.safetensors"))
    assert len({file.parent for file in kept}) == 2, "one folder for each of the two networks"

    def computes(*_: object) -> None:
        raise AssertionError("kept features were computed again")

    monkeypatch.setattr("patchcast.backbones.backbone.Backbone.block_outputs", computes)
    assert layers() == first


def test_by_layer_of_the_untrained_network_alone(finished: Path, tmp_path: Path) -> None:
    options = ["--untrained", "--layers", "0", "5", "--limit", "100", "--out", str(tmp_path / "layers.json")]
    assert main(["probe", str(finished), *options]) == 0
    found = json.loads((tmp_path / "layers.json").read_text())
    assert set(found) == {"command", "network", "data", "untrained"}
    assert set(found["untrained"]) == {"0", "5"}
    assert (tmp_path / "layers.png").stat().st_size > 1000


def test_by_finetuning(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    decays = []

    def seen(*arguments: Any, **options: Any) -> FinetuneResult:
        decays.append(options["layer_decay"])
        return finetune(*arguments, **options)

    monkeypatch.setattr("patchcast.evaluation.finetune_protocol.finetune", seen)
    assert main(["probe", str(finished), "--finetune", "2", "--limit", "100"]) == 0
    found = json.loads((finished / "finetune.json").read_text())
    assert found["steps"] == round(2 * 100 / 64)
    assert decays == [0.65, 1.0], "the untrained network has nothing to keep"
    assert 0 <= found["pretrained"]["accuracy"]["low"] < found["pretrained"]["accuracy"]["high"] <= 1
    assert "points" in capsys.readouterr().out
    assert "--finetune must be at least 1; got 0" in said(capsys, "probe", str(finished), "--finetune", "0")
    assert "at least 2 views of each image" in said(capsys, "probe", str(finished), "--lidar", "1")


def test_limits_and_splits_are_drawn_alike_every_time() -> None:
    first, again = (open_labeled("digits", channels=1, limit=50) for _ in range(2))
    assert first.train.positions.tolist() == again.train.positions.tolist()
    assert len(first.train) == 50
    assert len(first.test) == 72
    assert first.classes == 10
    assert first.train[3].label == labels_of(first.train)[3]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") == "cpu"
    with pytest.raises(ValueError, match="--device gpu needs a GPU"):
        torch_device("gpu")


def test_densely_on_collages_and_on_masks(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("patchcast.evaluation.dense_protocol.JUDGING", 20)
    assert main(["probe", str(finished), "--dense", "collages", "--limit", "40"]) == 0
    found = json.loads((finished / "dense.json").read_text())
    assert found["data"].startswith("collages of digits")
    for name in ("pretrained", "untrained", "raw pixels"):
        assert found[name]["knn"]["pixel_accuracy"]["value"] > 0.12, "ten classes"
    assert "IoU" in capsys.readouterr().out
    for split, count in (("train", 6), ("test", 3)):
        for place in range(count):
            halves = np.repeat(np.repeat(np.array([[0, 1]], dtype=np.uint8), 8, axis=0), 4, axis=1)
            for kind, pixels in (("images", 200 * halves + place), ("masks", halves)):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / kind / split / f"{place}.png")
    out = tmp_path / "dense.json"
    options = ["--dense", "masks", "--data", str(tmp_path), "--untrained", "--out", str(out)]
    assert main(["probe", str(finished), *options]) == 0
    found = json.loads(out.read_text())
    assert found["raw pixels"]["linear"]["mean_iou"]["value"] == 1.0, "one half is dark, the other bright"
    assert "pretrained" not in found
    assert "needs --data" in said(capsys, "probe", str(finished), "--dense", "masks")
