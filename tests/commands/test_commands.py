"""The command line as a person uses it: what it writes, and what it says of mistakes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from patchcast.arguments import fields_of
from patchcast.backbones.capabilities import METHOD_NAMES
from patchcast.cli import COMMANDS, main
from patchcast.honesty import _ways, examine
from patchcast.methods import METHODS
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.run import open_run, start_run
from tests import methods
from tests.commands.conftest import SMALL_MAE, TINY

pytestmark = pytest.mark.usefixtures("_no_figures")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a mistake is answered with."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("patchcast: ")
    assert captured.err.count("\n") == 1, "one sentence, on one line"
    return captured.err


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    files = {each.name for each in finished.iterdir()}
    assert files >= {
        "config.yaml", "config.json", "model.safetensors", "pretrainer.safetensors",
        "metrics.csv", "metrics.json", "loss.png", "reconstructions.png",
    }  # fmt: skip
    with Image.open(finished / "reconstructions.png") as picture:
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20, "the picture is blank"
    assert json.loads((finished / "metrics.json").read_text())["loss"] > 0


def test_the_config_runs_the_same_again(finished: Path, tmp_path: Path) -> None:
    assert main(["pretrain", "--config", str(finished / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, again = (load_file(out / "pretrainer.safetensors") for out in (finished, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not Resolved.load(finished / "config.yaml").differences(Resolved.load(tmp_path / "again" / "config.yaml"))


def test_export_loads_strictly_into_timm_with_equal_outputs(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(finished), "--out", str(out)]) == 0
    opened = open_run(finished)
    recipe, pretrainer = opened.recipe, opened.pretrainer
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        ours = pretrainer.backbone(images)
        by_keys = timm.create_model("test_vit", img_size=8, patch_size=2, in_chans=1, num_classes=0).eval()
        by_keys.load_state_dict(load_file(out / "model.safetensors"), strict=True)
        assert torch.equal(by_keys.forward_features(images), ours)
        by_folder = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
        assert torch.equal(by_folder.forward_features(images), ours)
    assert tuple(by_folder.pretrained_cfg["mean"]) == recipe.mean
    assert tuple(by_folder.pretrained_cfg["input_size"]) == (1, 8, 8)


def test_export_of_a_model_as_timm_makes_it(tmp_path: Path) -> None:
    """No arguments but the name: then `timm.create_model(name, num_classes=0)` takes every key."""
    from patchcast.interop.export_formats import write_encoder
    from patchcast.runs.results import encoder_of

    recipe = Recipe(method="mae", model="test_vit", data="digits", out=tmp_path, image_size=(160, 160), channels=3)
    write_encoder(encoder_of(start_run(recipe)), tmp_path)
    bare = timm.create_model("test_vit", num_classes=0)
    bare.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == config["model_args"]["num_classes"] == 0
    folder = f"local-dir:{tmp_path}"
    images = torch.randn(1, 3, 160, 160)
    assert timm.create_model(folder, pretrained=True)(images).shape == (1, bare.num_features)
    assert timm.create_model(folder, pretrained=True, num_classes=7)(images).shape == (1, 7)


def test_show(finished: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["show", str(finished), str(tmp_path / "a.png"), "--out", str(tmp_path / "shown.png")]) == 0
    assert (tmp_path / "shown.png").stat().st_size > 1000


def test_probe(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(finished), "--draws", "2", "--per_class", "1", "5", "--limit", "200"]) == 0
    found = json.loads((finished / "probe.json").read_text())
    assert found["raw pixels"]["linear"]["value"] > 0.8, "raw pixels of digits are easily told apart"
    assert found["pretrained"]["few_labels"][1]["per_class"] == 5
    assert "labels per class" in capsys.readouterr().out


def test_the_attentive_probe(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for choice in ("last", "best"):
        assert main(["probe", str(finished), "--attentive", choice, "--limit", "200"]) == 0
        found = json.loads((finished / "attentive.json").read_text())
        assert found["choice"] == choice
        assert found["pretrained"]["blocks"] == list(range(6)), "test_vit has six blocks"
        assert found["untrained"]["accuracy"]["value"] > 0.2, "there are ten classes"
    assert "attentive probe" in capsys.readouterr().out


TEST_VIT = ("--method", "mae", "--model", "test_vit")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "mae", "--model", "vit_tiny_patch16_22"), "did you mean vit_tiny_patch16_224"),
        (("--method", "mea", "--model", "test_vit"), "did you mean mae"),
        (
            (*TEST_VIT, "--method_args", '{"mask_ration": 0.5}'),
            "mae has no option 'mask_ration'; it has mask_ratio",
        ),
        ((*TEST_VIT, "--image_size", "[225, 224]"), "no patch of up to 16 pixels cuts images of 225x224"),
        ((*TEST_VIT, "--data", "EMPTY"), "no images under"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(
    words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = tuple(str(tmp_path / "empty") if word == "EMPTY" else word for word in words)
    data = () if "--data" in words else ("--data", "digits")
    out = ("--out", str(tmp_path / "new"), "--steps", "1", "--workers", "0")
    assert sentence in fails(capsys, "pretrain", *out, *data, *words)
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_trained_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = fails(capsys, "pretrain", *SMALL_MAE, *TINY, "--out", str(finished))
    assert "finished after 4 steps; --steps MORE continues it" in again
    different = fails(capsys, "pretrain", *SMALL_MAE, *TINY, "--out", str(finished), "--lr", "0.5")
    assert "lr is" in different
    assert "0.5 here" in different


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    assert "holds no run of patchcast" in fails(capsys, "pretrain", *SMALL_MAE, *TINY, "--out", str(notes))
    assert (notes / "mine.txt").read_text() == "mine"
    assert "holds no run" in fails(capsys, "show", str(notes))


def test_a_command_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean pretrain" in fails(capsys, "pretrian")


def test_unreadable_images_are_skipped_and_named(tmp_path: Path) -> None:
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    with pytest.warns(UserWarning, match="empty.jpg"):
        assert main(["pretrain", *SMALL_MAE, *TINY, "--data", str(folder), "--out", str(tmp_path / "run")]) == 0
    named = " ".join(json.loads((tmp_path / "run" / "metrics.json").read_text())["unreadable_images"])
    assert "torn.png" in named
    assert "empty.jpg" in named


@pytest.mark.parametrize(
    ("data_size", "model", "image_size", "patch_size"),
    [
        ((32, 32), "vit_tiny_patch16_224", (32, 32), 4),
        ((28, 28), "vit_tiny_patch16_224", (28, 28), 4),
        ((64, 64), "vit_tiny_patch16_224", (64, 64), 8),
        ((48, 96), "vit_tiny_patch16_224", (48, 96), 6),
        ((384, 512), "vit_tiny_patch16_224", (224, 224), None),
        ((8, 8), "test_vit", (8, 8), 2),
    ],
)
def test_sizes_follow_the_model_and_the_data(
    data_size: tuple[int, int], model: str, image_size: tuple[int, int], patch_size: int | None, tmp_path: Path
) -> None:
    for i in range(3):
        Image.fromarray(np.full((*data_size, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    recipe = Recipe(method="mae", model=model, data=str(tmp_path), out=tmp_path / "run", model_args={"depth": 1})
    resolved = start_run(recipe).recipe
    assert (resolved.image_size, resolved.patch_size) == (image_size, patch_size)


def test_help_is_instant() -> None:
    lazy = "import sys, patchcast.cli as cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True, check=True).stdout
    assert all(command in told for command in COMMANDS)


def test_flags_are_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["pretrain", *SMALL_MAE, *TINY, "--out", "somewhere", "--print_config"])
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)
    assert Recipe.load(tmp_path / "recipe.yaml").method_args == {"decoder_width": 32, "decoder_depth": 1}


def test_the_recipes_help_names_every_method() -> None:
    assert all(re.search(rf"\b{method}\b", fields_of(Recipe)["method"].help) for method in METHODS)


def test_the_help_groups_every_option_and_shows_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    run, *_ = told.partition("run: ")[2].partition("images: ")
    assert re.findall(r" --(?!no_)(\w+)", f" {run}") == ["method", "model", "data", "out", "overwrite", "dry_run"]
    assert "--seed N of everything random. Default: 0." in told


def test_an_argument_that_timms_model_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--model_args", '{"depthh": 3}', "--out", str(tmp_path / "new"))
    told = fails(capsys, "pretrain", "--method", "mae", *TINY, *wrong)
    assert "timm's test_vit has no argument 'depthh'; did you mean depth?" in told


def test_an_option_of_several_other_protocols_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(capsys, "probe", "run", "--dense", "collages", "--no_cache")
    assert "--dense does not use --cache, which is an option of the features, layers and attentive protocols" in told


def test_models_are_looked_up_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    lazy = "import sys, patchcast.cli as cli; cli.main(['models', 'swin_tiny*']); assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True, check=True).stdout
    assert "swin_tiny_patch4_window7_224" in told


def test_models_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit_tiny_r_s16_p8_224"]) == 0
    assert "its own networks: imagegpt_s" in fails(capsys, "models", "--method", "imagegpt")
    assert set(METHOD_NAMES) == set(METHODS), "patchcast.backbones.capabilities and patchcast.methods differ"
    assert "did you mean mae?" in fails(capsys, "models", "--method", "mea")
    assert "that aim can use; beit, data2vec, distill, ijepa, mae, maskfeat, simmim can" in fails(
        capsys, "models", "vit_tiny_r_s16_p8_224", "--method", "aim"
    )
    assert "no model matches 'hierra'; there are hiera" in fails(capsys, "models", "hierra")


def test_models_are_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet50*", "--method", "simmim"]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    header, first = (line.split() for line in lines[:2])
    assert f"{len(lines) - 1} architectures of timm" in title
    assert header == ["name", "drop", "attend", "replace", "paint", "image", "unit", "class"]
    assert first[0].startswith("resnet50")
    assert first[1] == "yes", "convolutional networks can be painted"


def test_models_into_a_pipe_that_closes() -> None:
    script = f"{sys.executable} -m patchcast models | head -1"
    told = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=True)
    assert "architectures" in told.stdout
    assert told.stderr == ""


@pytest.mark.parametrize("method", ["aim_features", "ijepa"])
def test_a_run_whose_targets_are_no_pixels_finishes(method: str, tmp_path: Path) -> None:
    out, small = tmp_path / "run", ["--method_args", json.dumps(methods.SMALL[method])]
    assert main(["pretrain", "--method", method, *small, *TINY, "--out", str(out)]) == 0
    assert (out / "loss.png").exists()
    assert (out / "metrics.json").exists()
    assert not (out / "reconstructions.png").exists()


def test_an_order_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for order, expected in (("hilbert", "FixedOrder(curve=<function hilbert"), ("random", "RandomOrder()")):
        recipe = Recipe("aim", "test_vit", "digits", tmp_path, method_args={"plan": order, "head_depth": 1})
        built = start_run(recipe).pretrainer
        assert repr(built.plan).startswith(expected.removesuffix(")"))
        assert built.predictor.query is not None
    wrong = ("--method_args", '{"plan": "spiral"}', "--out", str(tmp_path / "new"))
    assert "plan is one of raster, causal, snake" in fails(capsys, "pretrain", "--method", "aim", *TINY, *wrong)


def test_check_says_that_a_recipe_is_honest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("patchcast.commands.check.examine", partial(examine, limit=4, seconds=1.0))  # not 20
    # Compiling with the shape checks of the tests takes ten times as long as all the rest; test_honesty.py does it.
    monkeypatch.setattr("patchcast.honesty._ways", lambda pretrainer: islice(_ways(pretrainer), 3))
    recipe = Recipe(
        method="aim", model="test_vit", data="digits", out=tmp_path / "run", image_size=(16, 16), patch_size=4,
        model_args={"depth": 1}, method_args={"head_depth": 0, "normalize": False},
    )  # fmt: skip
    recipe.save(tmp_path / "recipe.yaml")
    assert main(["check", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "check.png")]) == 0
    assert "Honest." in capsys.readouterr().out
    assert (tmp_path / "check.png").stat().st_size > 1000
    assert "neither a run folder nor a recipe" in fails(capsys, "check", str(tmp_path / "nothing"))


def test_aim_on_raw_pixels_completes_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, normalized = tmp_path / "raw", tmp_path / "normalized"
    options = ["--method_args", '{"head_depth": 1, "normalize": false}', "--no_pictures"]
    assert main(["pretrain", "--method", "aim", *TINY, *options, "--out", str(raw)]) == 0
    config = (shutil.copytree(raw, normalized) / "config.yaml").read_text()
    (normalized / "config.yaml").write_text(config.replace("normalize: false", "normalize: true"))
    out = tmp_path / "completed.png"
    assert main(["complete", str(raw), "--count", "2", "--prefix", "4", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 20, "the picture is blank"
    capsys.readouterr()
    assert "normalize=False" in fails(capsys, "complete", str(normalized))
    assert "takes no temperature" in fails(capsys, "complete", str(raw), "--top_k", "3")
    assert "needs a prefix of 1 to 16 units; got 17" in fails(capsys, "complete", str(raw), "--prefix", "17")
