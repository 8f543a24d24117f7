"""Fine-tuned classifiers in other libraries: the same predictions, and code on the page that runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from patchcast import wrap
from patchcast.classification.classifier_export import compare_predictions
from patchcast.classification.classifier_folder import open_classifier
from patchcast.classification.serving import SERVING
from patchcast.cli import main
from patchcast.runs.network import open_network
from tests.classification.conftest import Photos

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text()


@pytest.fixture(scope="session")
def served(tuned: Path, photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's commands were run."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(tuned, place / "models" / "first")
    shutil.copy(photos.new / "red-0.png", place / "photo.jpg")
    [block] = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    with contextlib.chdir(place):
        for line in block.splitlines():
            assert main(line.split()[1:]) == 0, line
    return place


@pytest.mark.parametrize("title", ["timm", "transformers", "ONNX", "torch.export"])
def test_the_code_of_each_section_predicts_what_predict_predicts(
    title: str, served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime" if title == "ONNX" else "transformers" if title == "transformers" else "torch")
    monkeypatch.chdir(served)
    [code] = re.findall(rf"## {re.escape(title)}\n.*?```py\n(.*?)```", PAGE, re.DOTALL)
    assert main(["predict", "models/first", "photo.jpg", "--out", f"{title}.csv"]) == 0
    _, label, probability, *_ = (served / f"{title}.csv").read_text().splitlines()[1].split(",")
    capsys.readouterr()
    exec(compile(code, title, "exec"), {"__name__": "page"})
    said, share = capsys.readouterr().out.split()
    assert said == label
    assert abs(float(share) - float(probability)) < 0.02, "up to the way in which pixels are resized"


def test_the_page_has_the_code_of_the_cards(served: Path) -> None:
    for to, code in SERVING.items():
        lines = code.replace("FOLDER", f"served/{to}").replace("MODE", "'RGB'").replace("'", '"')
        assert lines in PAGE.replace("'", '"'), to
        card = (served / "served" / to / "README.md").read_text()
        assert code.splitlines()[-1] in card
        assert "timm.create_model" not in card
    assert json.loads((served / "served" / "onnx" / "classes.json").read_text()) == ["blue", "green", "red"]


def test_a_backbone_for_detection(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served)
    [code] = re.findall(r"## A backbone for detection\n.*?```py\n(.*?)```", PAGE, re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "detection", "exec"), {"__name__": "page"})
    assert "loss_classifier" in said.getvalue()


def test_a_backbone_for_torchvisions_segmenters(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(served)
    [code] = re.findall(r"## A backbone for torchvision's segmenters\n.*?```py\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "segmenter", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == "(2, 5, 16, 16)\n"


@pytest.mark.parametrize("to", ["timm", "onnx", "torch"])
def test_other_weights_are_exported(
    to: str, run: Path, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the words of --start; the card's code gives the embedding of the network that was opened."""
    pytest.importorskip("onnxruntime" if to == "onnx" else "torch")
    words, out = f"local-dir:{run}", tmp_path / "out"
    assert main(["export", words, "--out", str(out), "--to", to]) == 0
    shutil.copy(photos.new / "red-0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    card = (out / "README.md").read_text()
    assert "not trained by it" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {"__name__": "card"}
    exec(compile(code, "card", "exec"), names)
    network = open_network(words)
    with torch.no_grad():
        expected = network.backbone.eval().pool(torch.from_numpy(names["images"]), "mean_std")
    torch.testing.assert_close(torch.as_tensor(names["embedding"]), expected, atol=1e-4, rtol=1e-4)


def test_weights_that_are_not_exported(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["export", "vit_tini", *out]) == 2
    assert "timm has no model 'vit_tini'" in capsys.readouterr().err
    assert main(["export", str(photos.new), *out]) == 2
    assert "no other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_timms_folder_has_its_classes_and_no_tag(tuned: Path, tmp_path: Path) -> None:
    assert main(["export", str(tuned), "--out", str(tmp_path / "timm")]) == 0
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["num_classes"] == 3
    assert not {"tag", "hf_hub_id", "url"} & config["pretrained_cfg"].keys()
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), open_classifier(tuned).model(images))


def test_what_transformers_has_no_class_for_is_refused(
    photos: Photos, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "x"), "--epochs", "1"]
    assert main([*words, "--head", "attentive", "--freeze"]) == 0
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "x"), "--out", str(out), "--to", "transformers"]) == 2
    assert "transformers has no class for this model (its head is attentive" in capsys.readouterr().err
    assert not out.exists()


def test_another_model_is_not_kept(tuned: Path) -> None:
    model, other = open_classifier(tuned), open_classifier(tuned).model
    with torch.no_grad():
        other.get_classifier().bias[0] += 0.1  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match="does not predict what the classifier predicts"):
        compare_predictions(model, other, [torch.randn(1, 3, 16, 16)])


def test_a_classifier_is_a_network_and_a_backbone(tuned: Path) -> None:
    network = open_network(tuned)
    images = torch.randn(2, 3, 16, 16)
    theirs = open_classifier(tuned).model.forward_features(images)[:, 1:]  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(network.backbone.eval().units(images), theirs)
        assert torch.equal(wrap(str(tuned)).eval().units(images), theirs)
        assert torch.equal(wrap(f"local-dir:{tuned}").eval().units(images), theirs)
    assert network.evaluate.size == (16, 16)


def test_a_classifier_is_compared_embedded_and_searched_with(
    tuned: Path, run: Path, photos: Photos, tmp_path: Path
) -> None:
    words = ["compare", str(run), str(tuned), "--data", str(photos.labeled), "--no_supervised", "--per_class", "2"]
    assert main([*words, "--draws", "2", "--out", str(tmp_path / "table.parquet")]) == 0
    import pyarrow.parquet as pq

    assert str(tuned) in pq.read_table(tmp_path / "table.parquet")["network"].to_pylist()
    out = tmp_path / "features.safetensors"
    assert main(["embed", str(tuned), "--data", str(photos.labeled), "--out", str(out)]) == 0
    search = ["search", str(tuned), str(photos.new / "red-0.png"), "--data", str(photos.labeled)]
    assert main([*search, "--out", str(tmp_path / "near.png")]) == 0
