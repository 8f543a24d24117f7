"""`patchcast finetune --task segmentation` and its masks, on squares of three colors."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.backbones import wrap
from patchcast.classification.training import Settings
from patchcast.cli import main
from patchcast.data import Augment
from patchcast.data.masks import open_masked, read_mask
from patchcast.data.transforms import Evaluate
from patchcast.segmentation.masked_data import AugmentedMasks, places_of_tiles
from patchcast.segmentation.segmenter import Segmenter
from patchcast.segmentation.segmenter_card import segmenter_code
from patchcast.segmentation.segmenter_folder import FineTunedSegmenter, open_segmenter
from patchcast.segmentation.segmenter_plan import SegmenterPlan

COLORS = ((20, 20, 20), (220, 30, 30), (30, 30, 220))


def draw(chance: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image with two rectangles, and its mask."""
    mask = np.zeros(size, dtype=np.uint8)
    for label in (1, 2):
        top, left = chance.integers(0, size[0] - 12), chance.integers(0, size[1] - 12)
        mask[top : top + 12, left : left + 12] = label
    pixels = np.array(COLORS)[mask] + chance.integers(-15, 15, (*size, 3))
    return pixels.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, chance = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        for number in range(count):
            pixels, mask = draw(chance, (32, 32))
            for kind, picture in (("images", pixels), ("masks", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / kind / split / f"{number}.png")
    pixels, mask = draw(chance, (70, 90))
    Image.fromarray(pixels).save(root / "large.png")
    Image.fromarray(mask).save(root / "large-mask.png")
    return root


def finetune(shapes: Path, out: Path, *options: str, model: str = "test_vit") -> int:
    words = ["finetune", model, "--untrained", "--task", "segmentation", "--data", str(shapes), "--out", str(out)]
    return main([*words, "--image_size", "32", "--workers", "0", "--batch_size", "8", "--no_freeze", *options])


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "shapes"
    options = ("--head", "conv", "--epochs", "8", "--batch_size", "4", "--lr", "0.004", "--tiles")
    assert finetune(shapes, out, *options, model="test_efficientnet") == 0
    return out


@pytest.fixture(scope="module")
def whole_segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that resizes images, with a linear head on a frozen vision transformer."""
    out = tmp_path_factory.mktemp("models") / "whole"
    assert finetune(shapes, out, "--freeze", "--epochs", "2") == 0
    return out


@pytest.fixture(scope="module")
def predicted(segmenter: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masks of a large image and of the test images."""
    out = tmp_path_factory.mktemp("masks")
    assert predict(segmenter, shapes, out) == 0
    return out


def predict(segmenter: Path, shapes: Path, out: Path) -> int:
    return main(
        ["predict", str(segmenter), str(shapes / "large.png"), str(shapes / "images" / "test"), "--out", str(out)]
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "masks.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_precision_that_was_given_is_named() -> None:
    settings = Settings(epochs=2, batch_size=4, lr=0.003, precision="bf16")
    plan = SegmenterPlan("linear", True, "none", False, False, settings)
    assert str(plan).endswith(", augmentation none, in bf16")
    assert str(replace(plan, settings=replace(settings, precision=None))).endswith(", augmentation none")


def test_shapes_are_found(segmenter: Path) -> None:
    metrics = json.loads((segmenter / "metrics.json").read_text())
    alone = metrics["pixel_accuracy"]["value"]
    assert metrics["mean_iou"]["value"] > 0.6
    assert alone > 0.8
    assert {*metrics["iou"]} == {"0", "1", "2"}
    assert (segmenter / "worst-mistakes.png").exists()
    assert not (segmenter / "checkpoints").exists()


def test_a_mask_is_predicted_for_every_image(predicted: Path, shapes: Path) -> None:
    rows = rows_of(predicted)
    assert len(rows) == 7
    mask, truth = read_mask(predicted / rows[0]["mask"]), read_mask(shapes / "large-mask.png")
    assert mask.shape == truth.shape, "the size of the image, not of the network"
    assert float((mask == truth).double().mean()) > 0.8
    assert float(rows[0]["0"]) == pytest.approx(float((mask == 0).double().mean()), abs=1e-3)
    with Image.open(predicted / rows[0]["mask"].replace(".png", ".overlay.jpg")) as picture:
        assert picture.size == (90, 70)


def test_masks_that_are_there_are_not_predicted_again(segmenter: Path, predicted: Path, shapes: Path) -> None:
    gone, left = (predicted / row["mask"] for row in rows_of(predicted)[:2])
    mask, before = read_mask(gone), left.stat().st_mtime_ns
    gone.unlink()
    assert predict(segmenter, shapes, predicted) == 0
    assert left.stat().st_mtime_ns == before
    assert torch.equal(read_mask(gone), mask)


def test_a_linear_head_on_a_frozen_network(whole_segmenter: Path) -> None:
    tuned = open_segmenter(whole_segmenter)
    assert not tuned.tiled
    assert tuned.probabilities(torch.zeros(3, 20, 50, dtype=torch.uint8)).shape == (3, 20, 50)
    theirs = wrap("test_vit", img_size=32).model.state_dict()
    assert tuned.model.model.state_dict().keys() == theirs.keys()  # type: ignore[union-attr]


def test_a_finished_segmenter_is_left_alone(
    shapes: Path, whole_segmenter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(shapes, whole_segmenter, "--freeze", "--epochs", "2") == 0
    assert "is finished: Mean IoU" in " ".join(capsys.readouterr().out.split())
    assert finetune(shapes, whole_segmenter, "--freeze", "--epochs", "3") == 2
    assert "holds another model (epochs differ)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_heads_on_several_families(name: str, head: str) -> None:
    model = Segmenter(wrap(name, img_size=32), 5, head=head)  # type: ignore[arg-type]
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(each.grad is not None for each in model.head.parameters())
    trained = [each for each in model.model.parameters() if each.requires_grad]
    assert any(each.grad is not None for each in trained)
    classifier = model.model.get_classifier()
    assert not any(each.requires_grad for each in classifier.parameters()), "which no pixel depends on"


def test_masks_move_with_their_images(shapes: Path) -> None:
    images = open_masked(
        shapes, split="train", channels=3, transform=Evaluate((16, 16), (0.5,) * 3, (0.5,) * 3), size=(16, 16)
    )
    for tiled in (False, True):
        data = AugmentedMasks(images, Augment((16, 16), (0.3, 1.0), True, (0.0,) * 3, (1.0,) * 3), 0, tiled=tiled)
        for epoch in range(8):
            image, mask = data[epoch, 3]
            nearest = (image.permute(1, 2, 0)[:, :, None] - torch.tensor(COLORS) / 255).square().sum(-1).argmin(-1)
            assert float((nearest == mask).double().mean()) > 0.85, "but for borders"


def test_tiles_cover_every_pixel_and_average() -> None:
    covered = torch.zeros(13, 22)
    for top, left in places_of_tiles((13, 22), (8, 8)):
        covered[top : top + 8, left : left + 8] += 1
    assert covered.min() >= 1

    class Red(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images[:, 0], -images[:, 0]], dim=1)

    tuned = FineTunedSegmenter(Red(), ["red", "other"], 3, (8, 8), (0.5,) * 3, (0.5,) * 3, tiled=True)
    image = torch.randint(256, (3, 13, 22), dtype=torch.uint8)
    expected = torch.stack([image[0], 255 - image[0]]).float() * 2 / 255 - 1
    torch.testing.assert_close(tuned.probabilities(image), expected.softmax(dim=0), atol=1e-5, rtol=0)
    small = image[:, :5, :6]
    assert tuned.probabilities(small).shape == (2, 5, 6)


def test_mistakes(shapes: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, sentence in {
        ("--mixup", "0.5"): "does not use --mixup",
        ("--head", "attentive"): "has --head linear or conv",
    }.items():
        assert finetune(shapes, tmp_path / "x", *options) == 2
        assert sentence in capsys.readouterr().err
    assert (
        main(["finetune", "test_vit", "--untrained", "--data", "digits", "--out", str(tmp_path / "y"), "--tiles"]) == 2
    )
    assert "are for --task segmentation" in capsys.readouterr().err
    assert main(["predict", str(segmenter), str(shapes / "large.png")]) == 2
    assert "--out names a folder for its masks" in capsys.readouterr().err
    for to in ("timm", "transformers"):
        assert main(["export", str(segmenter), "--out", str(tmp_path / "z"), "--to", to]) == 2
        assert f"{to} has no class for a conv head over the layers of a timm model" in capsys.readouterr().err
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize(("to", "tiled"), [("onnx", False), ("torch", True)])
def test_the_code_of_a_card_gives_the_masks_of_predict(
    to: str,
    tiled: bool,
    segmenter: Path,
    whole_segmenter: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime" if to == "onnx" else "torch")
    folder, out = segmenter if tiled else whole_segmenter, tmp_path / "served"
    assert main(["export", str(folder), "--out", str(out), "--to", to]) == 0
    assert "Compared with the segmenter on 8 images" in " ".join(capsys.readouterr().out.split())
    assert main(["predict", str(folder), str(shapes / "large.png"), "--out", str(tmp_path / "masks")]) == 0
    expected = read_mask(tmp_path / "masks" / "00000-large.png")
    (tmp_path / "photo.jpg").write_bytes((shapes / "large.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    for place in (folder, out):
        [code] = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
        names: dict[str, Any] = {"__name__": "card"}
        exec(compile(code.replace("FOLDER", str(place)), "card", "exec"), names)
        found = torch.as_tensor(np.asarray(names["mask"]))
        assert float((found == expected).double().mean()) > 0.99, "up to the way in which pixels are resized"
    text = (out / "README.md").read_text()
    assert "Mean IoU" in text or "mean IoU" in text
    assert str(tmp_path) not in text


def test_the_page_has_the_code_of_the_cards() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text()
    code = segmenter_code("onnx", tiled=False).replace("FOLDER", "served/shapes").replace("MODE", '"RGB"')
    assert f"```py\n{code}\n```" in page


def test_a_page_about_a_segmenter(segmenter: Path, whole_segmenter: Path, tmp_path: Path) -> None:
    assert main(["report", str(segmenter), "--out", str(tmp_path / "one.html")]) == 0
    text = (tmp_path / "one.html").read_text()
    for part in ("mean IoU", "Classes, weakest first", "share of the pixels, %", "Worst mistakes", "Learning curve"):
        assert part in text
    assert text.count("<polyline") == 3, "losses of training and validation, and the measure"
    assert main(["report", str(segmenter), str(whole_segmenter), "--out", str(tmp_path / "two.html")]) == 0
    assert "Class by class" in (tmp_path / "two.html").read_text()
