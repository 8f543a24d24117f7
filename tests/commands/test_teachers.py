"""`--teacher` from the command line: what is learned, saved, checked and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from patchcast.cli import main
from patchcast.honesty import no_leak
from patchcast.recipe import Recipe
from patchcast.runs.run import open_run, start_run
from patchcast.runs.teachers import TEACHER_FILE, Absent
from patchcast.targets import FrozenFeatures
from tests.peers import wake

pytestmark = pytest.mark.usefixtures("_no_figures")

STUDENT = ["--model", "test_vit", "--model_args", '{"depth": 1}', "--data", "digits", "--workers", "0"]
SHORT = ["--batch_size", "16", "--eval_every", "2", "--no_pictures", "--mean", "0.3", "--std", "0.4"]
SIZE = ["--teacher_size", "32"]


def teacher(folder: Path, seed: int = 1) -> str:
    """A file of a convolutional network with random weights, and its name."""
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    save_file(wake(timm.create_model("test_resnet")).state_dict(), folder / "teacher.safetensors")
    return f"test_resnet={folder / 'teacher.safetensors'}"


def pretrain(method: str, words: str, out: Path, *options: str, steps: int = 2) -> int:
    command = ["pretrain", "--method", method, *STUDENT, *SHORT, *SIZE, "--teacher", words, "--out", str(out)]
    return main([*command, "--steps", str(steps), *options])


def recipe(method: str, words: str | None, out: Path, **options: object) -> Recipe:
    given = {"model_args": {"depth": 1}, "steps": 2, "batch_size": 16, "mean": (0.3,), "std": (0.4,), **options}
    return Recipe(method, "test_vit", "digits", out, teacher=words, **given)  # type: ignore[arg-type]


def test_distill_from_a_file(tmp_path: Path) -> None:
    words = teacher(tmp_path / "theirs")
    assert pretrain("distill", words, tmp_path / "run", "--teacher_blocks", "1", "2") == 0
    saved = load_file(tmp_path / "run" / "pretrainer.safetensors")
    assert not any(".teacher." in name for name in saved), "the teacher's weights are in its own file"
    run = open_run(tmp_path / "run")
    target = run.pretrainer.target
    assert isinstance(target, FrozenFeatures)
    assert (target.size, target.blocks) == ((32, 32), [1, 2])
    assert torch.equal(saved["target.mean"], target.mean)
    assert target.mean.any(), "standardized on the training images"
    network = timm.create_model("test_resnet", in_chans=1)
    given = load_file(tmp_path / "theirs" / "teacher.safetensors")
    first = network.pretrained_cfg["first_conv"] + ".weight"
    torch.testing.assert_close(
        target.teacher.model.get_parameter(first), given[first].sum(1, keepdim=True), msg="gray images"
    )
    config = network.pretrained_cfg
    mean, std = sum(config["mean"]) / 3, sum(config["std"]) / 3
    torch.testing.assert_close(target.contrast.flatten(), torch.tensor([0.4 / std]))
    torch.testing.assert_close(target.offset.flatten(), torch.tensor([(0.3 - mean) / std]))
    images = torch.randn(1, 1, *run.recipe.image_size)
    assert no_leak(run.pretrainer, images, run.pretrainer.draw(images), limit=3).honest


def test_pixels_and_a_run_as_teacher(finished: Path, tmp_path: Path) -> None:
    options = ["--method_args", '{"decoder_width": 32, "decoder_depth": 1, "teacher_weight": 0.5}']
    command = ["pretrain", "--method", "mae", *STUDENT, *SHORT, "--teacher", str(finished), *options]
    assert main([*command, "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "loss_pixels" in header
    assert "loss_teacher" in header
    images = torch.randn(1, 1, 8, 8)
    run = open_run(tmp_path / "run")
    output = run.pretrainer(images)
    torch.testing.assert_close(output.loss, output.losses["pixels"] + 0.5 * output.losses["teacher"])


def test_a_run_goes_on_with_the_same_teacher_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = teacher(tmp_path / "theirs"), tmp_path / "run"
    assert pretrain("distill", words, out, "--checkpoint_every", "1") == 0
    mean = load_file(out / "pretrainer.safetensors")["target.mean"]
    assert pretrain("distill", words, out, steps=4) == 0, "continued"
    assert torch.equal(load_file(out / "pretrainer.safetensors")["target.mean"], mean)
    teacher(tmp_path / "theirs", seed=2)
    capsys.readouterr()
    assert pretrain("distill", words, out, steps=6) == 2
    assert "holds other weights (digest" in capsys.readouterr().err
    run = open_run(out)
    assert isinstance(run.pretrainer.target, Absent)
    with pytest.raises(ValueError, match=r"is gone: .* holds other weights"):
        run.pretrainer(torch.randn(1, 1, *run.recipe.image_size))
    (tmp_path / "theirs" / "teacher.safetensors").unlink()
    assert main(["embed", str(out), "--data", "digits", "--out", str(tmp_path / "features.safetensors")]) == 0
    begun = json.loads((out / TEACHER_FILE).read_text())
    assert begun["words"] == words
    capsys.readouterr()
    assert pretrain("distill", words, out, steps=6) == 2
    assert "the teacher cannot be had: there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("simmim", {"teacher": True}, "simmim takes no teacher; distill, mae do"),
        ("distill", {}, "give --teacher WORDS"),
        ("mae", {"teacher_size": 32}, "teacher_size is an option of a teacher"),
        ("mae", {"method_args": {"teacher_weight": 2.0}}, "teacher_weight is an option of a teacher"),
        (
            "distill",
            {"teacher": True, "teacher_blocks": (9,)},
            r"teacher_blocks has 9, and .* has \d blocks or stages: give 0 to",
        ),
        ("mae", {"teacher": True, "method_args": {"teacher_weight": 0.0}}, "above 0; got 0.0"),
    ],
)
def test_what_cannot_be_is_one_sentence(method: str, given: dict[str, object], said: str, tmp_path: Path) -> None:
    words = teacher(tmp_path / "theirs") if given.pop("teacher", False) else None
    sizes = {"teacher_size": 32} if words else {}
    with pytest.raises(ValueError, match=said):
        start_run(recipe(method, words, tmp_path / "run", **{**sizes, **given}))


def test_a_teacher_of_other_images_is_refused(tmp_path: Path) -> None:
    """Its first layer would be random."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", in_chans=5).state_dict(), tmp_path / "five.safetensors")
    words = f"test_resnet={tmp_path / 'five.safetensors'}"
    with pytest.raises(ValueError, match="not trained on images of 3 channels"):
        start_run(recipe("distill", words, tmp_path / "run", teacher_size=32, channels=3))


def test_several_class_tokens(tmp_path: Path) -> None:
    """Pixio's, by timm's `reg_tokens`: they are trained, saved and exported, and the readout leaves them out."""
    tokens = ["--model_args", '{"depth": 1, "reg_tokens": 3}', "--method_args", '{"decoder_width": 32}']
    command = ["pretrain", "--method", "mae", *STUDENT[:2], *STUDENT[4:], *SHORT, *tokens]
    assert main([*command, "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    run = open_run(tmp_path / "run")
    backbone, images = run.pretrainer.backbone, torch.randn(2, 1, *run.recipe.image_size)
    assert backbone.features_prefix == 4
    prefix, units = backbone.split(backbone.forward_stages(backbone.embed(images)), backbone.embed(images))
    assert prefix.shape[1] == 4
    torch.testing.assert_close(backbone.pool(images, "mean"), units.mean(dim=1))
    torch.testing.assert_close(backbone.pool(images, "class"), prefix[:, 0])
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "timm")]) == 0
    exported = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert exported.num_prefix_tokens == 4
    with torch.no_grad():
        torch.testing.assert_close(exported.forward_features(images), backbone(images))
