"""The rule of defaults: the papers' settings, what was measured here, and nothing that is given or has begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchcast.cli import main
from patchcast.methods import METHODS
from patchcast.recipe import Recipe
from patchcast.runs.auto import with_method
from patchcast.runs.defaults import choose_defaults, filled
from patchcast.runs.run import start_run
from patchcast.runs.run_folder import claim
from patchcast.runs.sizes import count_units

pytestmark = pytest.mark.usefixtures("_no_figures")
ROOT = Path(__file__).resolve().parents[1]
IMAGENET = 1_281_167
SMALL = {"depth": 4, "img_size": 64, "patch_size": 8}
IMAGES = {"cifar10": 50_000, "digits": 1437, "eurosat": 5000, "imagenet": IMAGENET, "imagenette": 9469}


def by_rule(method: str, model: str, images: int | None, **given: Any) -> Any:
    recipe = Recipe(method, model, "data", Path("out"), **given)
    return filled(recipe, choose_defaults(recipe, METHODS[method], images))


@pytest.mark.parametrize(
    ("method", "model", "batch", "lr", "parts"),
    [
        ("mae", "vit_base_patch16_224", 4096, 2.4e-3, {"decoder_width": 512, "decoder_depth": 8}),
        ("mae", "vit_large_patch16_224", 4096, 2.4e-3, {"decoder_width": 512, "decoder_depth": 8}),
        ("ijepa", "vit_base_patch16_224", 2048, 1e-3, {"predictor_depth": 6}),
        ("ijepa", "vit_huge_patch14_224", 2048, 1e-3, {"predictor_depth": 12}),
        ("beit", "vit_base_patch16_224", 2048, 1.5e-3, {}),
        ("simmim", "vit_base_patch16_224", 2048, 8e-4, {}),
        ("imagegpt", "imagegpt_l", 128, 1e-3, {}),
        ("imagegpt", "imagegpt_s", 128, 3e-3, {}),
    ],
)
def test_the_papers_settings(method: str, model: str, batch: int, lr: float, parts: dict[str, int]) -> None:
    found = by_rule(method, model, IMAGENET, batch_size=batch)
    assert found.lr == pytest.approx(lr)
    assert found.method_args == parts


def test_what_was_measured_here() -> None:
    """MAE on EuroSAT: batches of 128 before 32, rates from 0.001 to 0.003, and a decoder of convolutions."""
    found = by_rule("mae", "vit_tiny_patch16_224", 5000, model_args=SMALL)
    assert found.batch_size == 128
    assert 1e-3 <= found.lr <= 3e-3
    assert found.method_args == {"decoder_width": 128, "decoder_depth": 3, "decoder_kernel": 3}
    assert found.epochs == 256
    assert 1e-3 <= by_rule("mae", "vit_tiny_patch16_224", 5000, model_args=SMALL, batch_size=64).lr <= 3e-3
    assert by_rule("aim", "vit_tiny_patch16_224", 5000, model_args=SMALL, batch_size=64).lr == pytest.approx(1e-3)


@pytest.mark.parametrize(("units", "kernel"), [(16, None), (49, 3), (256, 3), (289, None), (None, 3)])
def test_numbers_of_units_that_were_not_measured_take_the_papers_decoder(units: int | None, kernel: int | None) -> None:
    """Of digits in 16 units attention learns more, of images in 64 units convolutions do. Kernels do not reach over
    the blocks of a large grid."""
    recipe = Recipe("mae", "vit_tiny_patch16_224", "data", Path("out"), model_args=SMALL)
    found = choose_defaults(recipe, METHODS["mae"], 5000, units)["method_args"].value
    assert found.get("decoder_kernel") == kernel


@pytest.mark.parametrize(
    ("method", "pixels", "method_args"),
    [
        ("simmim", 15, {}),
        ("simmim", 16, {"head_kernel": 3, "normalize": True}),
        ("mae", 1, {"decoder_width": 128, "decoder_depth": 3, "decoder_kernel": 3}),
        ("nepa", 15, {}),
    ],
)
def test_units_of_few_pixels_are_not_normalized_unless_asked(
    method: str, pixels: int, method_args: dict[str, Any]
) -> None:
    """A unit of one gray pixel has no spread; MAE normalizes with either decoder."""
    recipe = Recipe(method, "vit_tiny_patch16_224", "data", Path("out"), model_args=SMALL)
    found = choose_defaults(recipe, METHODS[method], 5000, 64, pixels)
    assert (found["method_args"].value if "method_args" in found else {}) == method_args


@pytest.mark.parametrize(
    ("method", "given", "wanted"),
    [
        ("simmim", {"head_kernel": 5}, {"normalize": True}),
        ("simmim", {"mask_size": 16}, {"normalize": True, "head_kernel": 3}),
        ("simmim", {"head_kernel": None}, {}),
        ("mae", {"decoder_kernel": 5}, {"decoder_width": 128, "decoder_depth": 3}),
        ("maskfeat", {}, {"head_kernel": 3, "pixel_weight": 0.5}),
        ("nepa", {}, {"head_depth": 2, "pixel_weight": 0.5}),
        ("aim_features", {}, {"head_depth": 2, "pixel_weight": 0.5}),
        (
            "data2vec",
            {"masks": 4},
            {"momentum": 0.99, "decoder_width": 128, "decoder_depth": 3, "pixel_weight": 0.5},
        ),
    ],
)
def test_what_few_images_get(method: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Another kernel or mask keeps the rest; no kernel is the paper's method."""
    assert by_rule(method, "vit_tiny_patch16_224", 5000, model_args=SMALL, method_args=given).method_args == {
        **given,
        **wanted,
    }


@pytest.mark.parametrize(
    "given",
    [
        {"method_args": {"mask_cell": 4}},
        {"readout": "class"},
        {"model_args": {**SMALL, "reg_tokens": 2}},
        {"teacher": "test_resnet"},
    ],
)
def test_what_convolutions_cannot_see_takes_the_papers_decoder(given: dict[str, Any]) -> None:
    found = by_rule("mae", "vit_tiny_patch16_224", 5000, **{"model_args": SMALL, **given})
    assert "decoder_kernel" not in found.method_args


def test_distillation_with_few_images() -> None:
    """Its teacher is a part of the method, and not added to one that was measured without it."""
    found = by_rule("distill", "vit_tiny_patch16_224", 5000, model_args=SMALL, teacher="test_resnet")
    assert found.method_args == {"decoder_width": 128, "decoder_depth": 2}
    assert found.optimizer == "muon"


@pytest.mark.parametrize(("patch", "units"), [(None, 16), (4, 16), (2, 64)])
def test_units_of_a_network_of_stages(patch: int | None, units: int) -> None:
    """Patches of 4 pixels are merged three times: a unit has 32 pixels."""
    recipe = Recipe("ijepa", "swin_tiny_patch4_window7_224", "data", Path("out"))
    assert count_units(recipe, (128, 128), patch) == (units, 128 * 128 // units)


def test_a_network_of_stages_has_the_same_decoder() -> None:
    width = {"decoder_width": 512}
    assert by_rule("mae", "hiera_tiny_224", 5000).method_args == {**width, "decoder_depth": 3, "decoder_kernel": 3}
    assert by_rule("mae", "hiera_tiny_224", 10**6).method_args == {**width, "decoder_depth": 1}


def test_more_images_take_larger_batches_and_fewer_passes() -> None:
    recipes = [by_rule("simmim", "test_vit", images) for images in (8, 400, 5000, 50_000, IMAGENET, 10**9)]
    assert [recipe.batch_size for recipe in recipes] == [32, 32, 128, 256, 2048, 2048]
    assert [recipe.epochs for recipe in recipes] == [800, 800, 256, 100, 100, 100]
    assert by_rule("simmim", "test_vit", None, steps=9).batch_size == 256  # a stream


def test_a_batch_is_shared_evenly() -> None:
    assert by_rule("mae", "test_vit", 5000, devices=3).batch_size == 129


def test_what_is_given_stays() -> None:
    given: dict[str, Any] = {"batch_size": 48, "lr": 1e-5, "warmup": 0.2, "epochs": 3.0}
    found = by_rule("mae", "test_vit", 5000, **given, method_args={"decoder_depth": 5, "mask_ratio": 0.6})
    assert {name: getattr(found, name) for name in given} == given
    assert found.method_args == {"decoder_depth": 5, "mask_ratio": 0.6, "decoder_width": 32, "decoder_kernel": 3}
    assert not choose_defaults(found, METHODS["mae"], 5000)


@pytest.mark.parametrize("given", [{"decoder_heads": 2}, {"decoder_kernel": None}])
def test_a_decoder_with_attention_has_the_papers_proportions(given: dict[str, Any]) -> None:
    found = by_rule("mae", "vit_tiny_patch16_224", 5000, model_args=SMALL, method_args=given)
    assert found.method_args == {"decoder_width": 128, "decoder_depth": 2, **given}


@pytest.mark.parametrize(
    ("images", "given", "optimizer"),
    [
        (5000, {}, "muon"),
        (100_001, {}, "adamw"),
        (5000, {"start": "runs/a"}, "adamw"),
        (5000, {"sharded": True}, "adamw"),
        (5000, {"method_args": {"decoder_kernel": None}}, "muon"),
        (5000, {"readout": "class"}, "muon"),
        (5000, {"teacher": "test_resnet"}, "adamw"),
        (5000, {"optimizer": "adamw"}, "adamw"),
        (IMAGENET, {"optimizer": "muon"}, "muon"),
    ],
)
def test_few_images_are_learned_with_muon(images: int, given: dict[str, Any], optimizer: str) -> None:
    assert by_rule("mae", "vit_tiny_patch16_224", images, model_args=SMALL, **given).optimizer == optimizer


@pytest.mark.parametrize(
    ("method", "option"),
    [("mae", "decoder_kernel"), ("ijepa", "pixel_weight"), ("simmim", "normalize"), ("nepa", "head_depth")],
)
def test_many_images_take_the_papers_method(method: str, option: str) -> None:
    few, many = (by_rule(method, "vit_tiny_patch16_224", images).method_args for images in (100_000, 100_001))
    assert few[option]
    assert option not in many


def test_a_run_that_has_begun_keeps_its_values(tmp_path: Path) -> None:
    """One of an earlier version too, by the command that began it: batches of 256, and the paper's decoder."""
    command = Recipe("mae", "test_vit", "digits", tmp_path / "run", model_args={"depth": 1}, steps=2)
    now = start_run(command).recipe
    assert (now.batch_size, now.method_args["decoder_depth"]) == (64, 1)
    earlier = dataclasses.replace(now, batch_size=256, lr=1.5e-4, method_args={"decoder_width": 32}, epochs=0.36)
    earlier.out.mkdir()
    earlier.save(earlier.out / "config.yaml")
    again = start_run(command)
    assert again.recipe.to_dict() == earlier.to_dict()
    assert not again.chosen
    assert not claim(again.recipe), "there is no checkpoint yet"
    copied = dataclasses.replace(Recipe.load(earlier.out / "config.yaml"), out=tmp_path / "copy")
    assert start_run(copied).recipe.method_args == {"decoder_width": 32}
    with pytest.raises(ValueError, match=r"holds another run \(.*lr is 0.00015 there and 0.01 here"):
        claim(start_run(dataclasses.replace(command, lr=0.01)).recipe)


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_recipes_give_a_reason_where_they_leave_the_rule(file: Path) -> None:
    recipe, text = Recipe.load(file), file.read_text()
    rest = {name: value for name, value in recipe.method_args.items() if not name.endswith(("depth", "width"))}
    left = dataclasses.replace(recipe, lr=None, warmup=None, method_args=rest)
    images, method = IMAGES[file.stem.split("_")[0]], METHODS[recipe.method]
    rule: Any = filled(left, choose_defaults(left, method, images))
    usual = choose_defaults(dataclasses.replace(left, batch_size=None), method, images)["batch_size"].value
    stated = yaml.safe_load(text)
    for name, value in {"lr": rule.lr, "warmup": rule.warmup, "batch_size": usual}.items():
        if name in stated and float(stated[name]) != pytest.approx(value, rel=0.02):
            assert "#" in line_of(text, name), f"{name} is {stated[name]}, and {value} by the rule"
    for name, value in stated.get("method_args", {}).items():
        if name in rule.method_args and value != rule.method_args[name]:
            assert "#" in line_of(text, "method_args"), f"{name} is {value}, and {rule.method_args[name]} by the rule"
    assert any("#" in line_of(text, name) for name in ("steps", "epochs") if name in stated)


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name}:"))


def test_auto_names_a_method_that_the_model_can_run_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, method in {"test_vit": "mae", "swin_tiny_patch4_window7_224": "beit", "imagegpt_s": "imagegpt"}.items():
        recipe, why = with_method(Recipe("auto", model, "digits", tmp_path))
        assert recipe.method == method
        assert method in why
    assert with_method(Recipe("simmim", "test_vit", "digits", tmp_path))[1] == ""
    command = ["pretrain", "--method", "auto", "--model", "test_vit", "--data", "digits", "--model_args.depth", "1"]
    command += ["--steps", "2", "--no_pictures", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Method mae: test_vit runs on the visible units alone" in printed
    assert "batch_size 64: for 1,437 images" in printed
    assert Recipe.load(tmp_path / "run" / "config.yaml").method == "mae"
    assert main(command) == 2
    assert "finished" in capsys.readouterr().err, "the same command, in its folder, is of the same run"
