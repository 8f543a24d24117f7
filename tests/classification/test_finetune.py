"""`patchcast finetune`: what it learns, what its folder holds, that it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from patchcast.backbones import wrap
from patchcast.classification import training
from patchcast.classification.classifier_data import classifier_data
from patchcast.classification.classifier_folder import open_classifier
from patchcast.classification.frozen import fit_linear_head
from patchcast.classification.model import classifier, freeze
from patchcast.cli import main
from patchcast.data import open_source
from patchcast.evaluation.features import Features
from patchcast.evaluation.linear import logistic_path
from tests.classification.conftest import Photos


def test_the_folder_is_a_model_of_timm_with_its_classes(tuned: Path, photos: Photos, pixels: Tensor) -> None:
    """timm's own transform and forward give the logits that patchcast's do, and the accuracy that is written."""
    model: Any = timm.create_model(f"local-dir:{tuned}", pretrained=True).eval()
    assert model.num_classes == 3
    assert list(model.pretrained_cfg["label_names"]) == list(photos.names)
    assert json.loads((tuned / "classes.json").read_text()) == list(photos.names)
    ours = open_classifier(tuned)
    shown = torch.stack([ours.evaluate(image) for image in pixels])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    theirs = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in pixels])
    torch.testing.assert_close(shown, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        logits = model(theirs)
        # The head reads the mean over units after the norm, which is what pretraining trains and probes measure.
        features = wrap(timm.create_model(f"local-dir:{tuned}", pretrained=True).eval()).pool(shown, "mean")
        torch.testing.assert_close(logits, model.head(features), atol=1e-4, rtol=1e-4)
    right = float((logits.argmax(dim=1) == torch.arange(3).repeat_interleave(4)).double().mean())
    metrics = json.loads((tuned / "metrics.json").read_text())
    assert metrics["accuracy"]["value"] == pytest.approx(right)
    assert right > 0.9
    assert metrics["test_images"] == 12
    assert metrics["largest_class_share"] == pytest.approx(1 / 3)
    assert len(metrics["chosen"]["epochs"]) == 8


def test_the_rest_of_the_folder(tuned: Path) -> None:
    names = {file.name for file in tuned.iterdir()}
    assert {"README.md", "confusion.png", "config.json", "model.safetensors"} <= names
    assert "checkpoints" not in names
    card = (tuned / "README.md").read_text()
    assert "image-classification" in card
    assert str(tuned.parent) not in card


def test_few_labels_freeze_the_backbone(run: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    words = ["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "x")]
    assert main([*words, "--class_weights", "balanced"]) == 0
    assert "fitted by logistic regression" in " ".join(capsys.readouterr().out.split())
    before = load_file(run / "model.safetensors")
    after = load_file(tmp_path / "x" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("head."))
    assert json.loads((tmp_path / "x" / "metrics.json").read_text())["accuracy"]["value"] > 0.9
    assert main(words) == 2  # without balanced classes it is another classifier
    assert "class_weights differ" in capsys.readouterr().err


def test_an_attentive_head_leaves_the_backbone_as_it_was(run: Path, photos: Photos, tmp_path: Path) -> None:
    words = ["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "x"), "--head", "attentive"]
    assert main([*words, "--freeze", "--epochs", "2", "--mixup", "0.5", "--cutmix", "1", "--augment", "strong"]) == 0
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    assert model.global_pool == "map"
    before, after = load_file(run / "model.safetensors"), load_file(tmp_path / "x" / "model.safetensors")
    kept = [name for name in before if name in after and not name.startswith("head.")]
    assert len(kept) > 20
    assert all(torch.equal(after[name], before[name]) for name in kept)


def test_a_stopped_training_reaches_the_same_weights(
    run: Path, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Stopped by SIGTERM in the middle of the second epoch, with everything that is drawn by chance."""
    given = ["--no_freeze", "--epochs", "3", "--batch_size", "8", "--mixup", "0.8", "--augment", "strong"]
    words = ["finetune", str(run), "--data", str(photos.labeled), *given]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    shape, calls = training.warmup_cosine, []

    def stopping(step: int, **how: Any) -> float:
        calls.append(step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return shape(step, **how)

    monkeypatch.setattr(training, "warmup_cosine", stopping)
    assert main([*words, "--out", str(tmp_path / "parts")]) == 143
    assert "at step 5" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*words, "--out", str(tmp_path / "parts")]) == 0
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [json.loads((tmp_path / name / "metrics.json").read_text())["chosen"] for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "parts")]) == 0
    assert "is finished" in " ".join(capsys.readouterr().out.split())


def test_training_in_bf16(run: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    """Products in bf16 with explicit attention, weights and validation in fp32, and the model as it was afterwards.

    The folder is not continued in another precision, also where none is given.
    """
    seen = set[tuple[Any, ...]]()

    def note(layer: Any, _: Any, out: Any) -> None:
        if isinstance(layer, timm.layers.Attention):
            seen.add((torch.is_grad_enabled(), out.dtype, layer.fused_attn, layer.qkv.weight.dtype))

    given = ["--no_freeze", "--epochs", "1", "--batch_size", "8", "--precision", "bf16", "--device", "cpu"]
    words = ["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "model"), *given]
    with torch.nn.modules.module.register_module_forward_hook(note):
        assert main(words) == 0
    assert seen == {(True, torch.bfloat16, False, torch.float32), (False, torch.float32, True, torch.float32)}
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["how"].endswith(", in bf16")
    place = words.index("--precision")
    capsys.readouterr()
    assert main([*words[:place], *words[place + 2 :]]) == 2
    assert "holds another classifier (precision differ)" in capsys.readouterr().err


def test_the_best_epoch_is_chosen(tuned: Path) -> None:
    chosen = json.loads((tuned / "metrics.json").read_text())["chosen"]
    best = max(row["validation_accuracy"] for row in chosen["epochs"])
    assert chosen["validation_accuracy"] == best
    lowest = min(row["validation_loss"] for row in chosen["epochs"] if row["validation_accuracy"] == best)
    assert chosen["validation_loss"] == lowest


def test_a_validation_split_is_used_and_else_a_fifth(photos: Photos, tmp_path: Path) -> None:
    data = classifier_data(open_source(str(photos.labeled)))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 12)
    assert not set(data.train.positions) & set(data.validation.positions)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (8, 8), number).save(tmp_path / split / name / f"{number}.png")
    data = classifier_data(open_source(str(tmp_path)), per_class=2)
    assert (len(data.train), data.validation.split, data.test.split) == (4, "val", "test")


def test_weights_of_classes_even_them_out(tmp_path: Path) -> None:
    for name, count in (("a", 30), ("b", 10)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
    data = classifier_data(open_source(str(tmp_path)))
    counts = torch.from_numpy(np.bincount(data.train.labels))
    shares = data.weights() * counts
    torch.testing.assert_close(shares[0], shares[1])
    assert float(shares.sum()) == pytest.approx(len(data.train))


def test_a_linear_head_is_the_linear_probe() -> None:
    """The head in the model gives the logits of logistic regression on standardized features of both parts."""
    generator = torch.Generator().manual_seed(0)
    model: Any = classifier(wrap("test_vit", img_size=32), classes=4)
    labels = torch.arange(60) % 3  # and no image of the fourth
    x = torch.randn(60, 64, generator=generator) + 0.5 * torch.nn.functional.one_hot(labels, 64)
    path = fit_linear_head(model, Features(x[:45], labels[:45]), Features(x[45:], labels[45:]))
    best = max(path, key=lambda strength: (path[strength], -strength))
    probe = next(logistic_path(Features(x, labels), [best]))
    logits = model.head(x).detach()
    torch.testing.assert_close(logits[:, :3].double(), probe.logits(x), atol=1e-4, rtol=1e-4)
    assert bool((logits[:, 3] < logits[:, :3].amin(dim=1)).all())


def test_weights_of_classes_weigh_images() -> None:
    """An image that counts twice is the image given twice."""
    x, labels = torch.tensor([[0.0], [1.0], [2.0], [4.0], [1.5]]), torch.tensor([0, 0, 1, 1, 1])
    once = Features(x, labels)
    twice = Features(torch.cat([x, x[:2]]), torch.cat([labels, labels[:2]]))
    weighted = next(logistic_path(once, [1.0], class_weights=torch.tensor([2.0, 1.0])))
    repeated = next(logistic_path(twice, [1.0]))
    # They are standardized by different means, so the penalty differs; both prefer class 0 more than the plain fit.
    plain = next(logistic_path(once, [1.0]))
    at = torch.tensor([[1.4]])
    for probe in (weighted, repeated):
        logits = probe.logits(at)[0]
        assert float(logits[0] - logits[1]) > float(plain.logits(at)[0, 0] - plain.logits(at)[0, 1])


def test_freezing_leaves_the_head() -> None:
    model = classifier(wrap("test_vit", img_size=32), classes=3, head="attentive")
    freeze(model)
    trained = {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"head", "attn_pool"}


def test_other_families_are_fine_tuned(photos: Photos, tmp_path: Path) -> None:
    words = ["finetune", "test_resnet", "--untrained", "--image_size", "32", "--data", str(photos.labeled)]
    assert main([*words, "--out", str(tmp_path / "x"), "--epochs", "1"]) == 0
    loaded: Any = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    assert loaded.num_classes == 3
    assert loaded.pretrained_cfg["input_size"] == (3, 32, 32)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epochs", "3"], "fitted without --epochs"),
        (["--precision", "bf16"], "fitted without --precision"),
        (["--freeze", "--layer_decay", "0.5"], "the blocks are not trained"),
        (["--lr", "0"], "--lr must be above 0; got 0.0"),
        (["--layer_decay", "2"], "--layer_decay must be above 0 and at most 1; got 2.0"),
        (["--image_size", "32"], "knows its image size"),
    ],
)
def test_options_without_a_use_are_refused(
    words: list[str], says: str, run: Path, photos: Photos, tmp_path: Path, capsys: Any
) -> None:
    assert main(["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "x"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "x" / "finetune.json").exists()


def test_sources_without_classes_are_refused(run: Path, photos: Photos, tmp_path: Path, capsys: Any) -> None:
    words = ["finetune", str(run), "--out", str(tmp_path / "x"), "--data"]
    assert main([*words, str(photos.new)]) == 2
    assert "has no labels" in capsys.readouterr().err
    for split in ("train", "test"):
        (tmp_path / "one" / split / "a").mkdir(parents=True)
        (tmp_path / "one" / split / "b").mkdir(parents=True)
        for number in range(4):
            name = "a" if split == "train" else "b"
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "one" / split / name / f"{number}.png")
    assert main([*words, str(tmp_path / "one")]) == 2
    assert "are of one class" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main(["finetune", str(run), "--data", str(photos.labeled), "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_unreadable_images_are_named(run: Path, photos: Photos, tmp_path: Path) -> None:
    for split, counts in (("train", 5), ("test", 3)):
        for name in photos.names[:2]:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(counts):
                source = photos.labeled / split / name / f"{number}.png"
                (tmp_path / "data" / split / name / f"{number}.png").write_bytes(source.read_bytes())
    broken = tmp_path / "data" / "test" / "green" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.warns(UserWarning, match="skipped"):
        assert main(["finetune", str(run), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "x")]) == 0
    metrics = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert metrics["test_images"] == 5
    assert any("green/0.png" in line for line in metrics["unreadable_images"])
