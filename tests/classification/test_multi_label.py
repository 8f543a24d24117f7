"""Images with several labels: trained, judged, predicted and exported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from patchcast.classification.classifier_data import classifier_data
from patchcast.classification.classifier_folder import open_classifier
from patchcast.classification.labeling import LabelSets, average_precisions, label_sets
from patchcast.cli import main
from patchcast.data import open_source
from patchcast.data.columns import as_sets
from patchcast.evaluation.labeled import labels_of


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two halves, each dark or bright: "left", "right", both or none."""
    import io

    from PIL import Image

    root, chance = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 24)):
        rows = []
        for number in range(count):
            left, right = number % 2, number // 2 % 2
            pixels = chance.integers(0, 60, (16, 16, 3))
            pixels[:, :8, 0] += 180 * left
            pixels[:, 8:, 2] += 180 * right
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
            label = ";".join(["left"] * left + ["right"] * right) or ";"
            rows.append({"image": {"bytes": buffer.getvalue()}, "label": label})
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}.parquet")
    return root


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "scenes"
    words = ["finetune", "test_vit", "--untrained", "--data", str(scenes), "--out", str(out), "--multi_label"]
    words += ["--image_size", "32", "--no_freeze", "--epochs", "12", "--batch_size", "16", "--augment", "none"]
    assert main([*words, "--lr", "0.003", "--workers", "0", "--smoothing", "0"]) == 0
    return out


def test_a_set_is_learned_and_predicted(model: Path, scenes: Path, tmp_path: Path) -> None:
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["mean_average_precision"]["value"] > 0.95
    assert metrics["mean_average_precision"]["low"] <= metrics["mean_average_precision"]["value"]
    assert metrics["chosen"]["validation_mean_average_precision"] > 0.95
    assert {*metrics["average_precision"]} == {"left", "right"}
    assert "mean average precision" in (model / "README.md").read_text()
    assert main(["predict", str(model), str(scenes / "test.parquet"), "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth = pq.read_table(scenes / "test.parquet")["label"].to_pylist()
    right = sum(
        {*row["labels"].split(";")} - {""} == {*label.split(";")} - {""} for row, label in zip(rows, truth, strict=True)
    )
    assert right / len(rows) == pytest.approx(metrics["exactly_right"]["value"])
    assert right > 16
    sums = [float(row["probability"]) + float(row["probability_2"]) for row in rows]
    assert max(sums) > 1.2, "probabilities of one class do not depend on the other"


@pytest.mark.parametrize("to", ["onnx", "transformers"])
def test_it_is_exported(model: Path, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime" if to == "onnx" else "transformers")
    assert main(["export", str(model), "--out", str(tmp_path / to), "--to", to]) == 0
    assert "Compared with the classifier on 8 images" in capsys.readouterr().out
    assert open_classifier(model).is_multi_label
    if to == "transformers":
        config = json.loads((tmp_path / to / "config.json").read_text())
        assert config["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize("kind", ["names", "ids", "numbers"])
@pytest.mark.parametrize("source", ["parquet", "datasets"])
def test_lists_of_labels_are_sets(
    kind: str, source: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column of lists gives the sets that text gives; without --multi_label one sentence says what takes it."""
    pytest.importorskip("datasets")
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

    own = {
        "names": {"left": "left", "right": "right"},
        "ids": {"left": 1, "right": 0},
        "numbers": {"left": 7, "right": 30},
    }
    feature = {"names": Value("string"), "ids": ClassLabel(names=["right", "left"]), "numbers": Value("int64")}[kind]
    parts, texts = {}, {}
    for split in ("train", "test"):
        table = pq.read_table(scenes / f"{split}.parquet").to_pylist()
        texts[split] = [row["label"] for row in table]
        rows = [
            {"image": row["image"], "labels": [own[kind][name] for name in row["label"].split(";") if name]}
            for row in table
        ]
        parts[split] = Dataset.from_list(rows, Features(image=Image(decode=False), labels=List(feature)))
    data = tmp_path / "lists"
    if source == "datasets":
        DatasetDict(parts).save_to_disk(data)
    else:
        data.mkdir()
        for split, part in parts.items():
            part.to_parquet(data / f"{split}.parquet")
    found = classifier_data(open_source(str(data), several_labels=True), multi_label=True)
    assert found.names == (["30", "7"] if kind == "numbers" else ["left", "right"])
    assert isinstance(found.labeling, LabelSets)
    order = [1, 0] if kind == "numbers" else [0, 1]
    targets = found.labeling.targets(torch.from_numpy(labels_of(found.test)))[:, order]
    expected = [[float(name in text.split(";")) for name in ("left", "right")] for text in texts["test"]]
    assert targets.tolist() == expected
    assert main(["finetune", "test_vit", "--untrained", "--data", str(data), "--out", str(tmp_path / "x")]) == 2
    assert "holds lists of several labels" in (said := capsys.readouterr().err)
    assert "finetune --multi_label takes several" in said


def test_lists_that_name_no_sets() -> None:
    lists = pa.chunked_array([[["cat;dog"], ["cat"]]])
    with pytest.raises(ValueError, match="'cat;dog' has a ';' in its name"):
        as_sets(lists, None)
    with pytest.raises(ValueError, match="holds class 2, and there are 2 class names"):
        as_sets(pa.chunked_array([[[0, 2]]]), ["cat", "dog"])


def test_mistakes(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "test_vit", "--untrained", "--out", str(tmp_path / "x"), "--multi_label"]
    assert main([*words, "--data", str(scenes), "--mixup", "0.8"]) == 2
    assert "need one label per image" in capsys.readouterr().err
    with pytest.raises(ValueError, match="these name 1 class; leave it out"):
        label_sets(["cat", ";"])


def test_average_precision_is_the_area_of_the_steps() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    found = average_precisions(scores, targets)
    assert found[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(found[1])
