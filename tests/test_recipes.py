"""Every file in recipes/ says what it takes and gives, resolves as it stands, and trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcast.cli import main
from patchcast.commands.pretrain import pretrain
from patchcast.data import open_source
from patchcast.recipe import Recipe
from patchcast.runs.build import find_method, resolve
from tests.few import few_digits

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {file.stem: file for file in sorted((ROOT / "recipes").glob("*.yaml"))}
SMALLER = {
    "mae": {"decoder_width": 32, "decoder_depth": 1},
    "aim": {"head_width": 32, "head_depth": 1},
    "ijepa": {"predictor_width": 32, "predictor_depth": 1, "predictor_heads": 2},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def recipe_of(name: str, photos: Path) -> Recipe:
    recipe = Recipe.load(RECIPES[name])
    return recipe if recipe.data == "digits" else dataclasses.replace(recipe, data=str(photos))


def test_there_are_some() -> None:
    assert {"digits_mae", "eurosat_aim", "imagenet_mae", "imagenet_aim", "imagenet_ijepa"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_says_what_it_takes_and_gives(name: str) -> None:
    text = RECIPES[name].read_text()
    header = text[: text.index("\nmethod:")]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"patchcast pretrain --config recipes/{name}.yaml" in header
    assert "Hardware" in header
    assert ("NOT RUN HERE" in header) != ("Reached" in header)
    assert yes_if_placeholder(text)


def yes_if_placeholder(text: str) -> bool:
    """A path that is nobody's has to be given."""
    return "data: path/to" not in text or "--data " in text


@pytest.mark.parametrize("name", RECIPES)
def test_it_resolves_as_it_stands(name: str, photos: Path) -> None:
    recipe = recipe_of(name, photos)
    resolved, _ = resolve(recipe, find_method(recipe.method), open_source(recipe.data))
    for option, value in Recipe.load(RECIPES[name]).to_dict().items():
        got = resolved.to_dict()[option]
        if option == "method_args":
            assert got == {**got, **value}
        elif value is not None and option not in ("data", "epochs"):
            assert got == value, option
    if name == "imagenet_mae":
        assert resolved.lr == pytest.approx(2.4e-3), "the paper's 1.5e-4 for 256 images"


LONGER = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("digits") else name for name in RECIPES]


@pytest.mark.parametrize("name", LONGER)
def test_it_does_two_steps_on_a_small_network(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(name, photos)
    small: dict[str, object] = {"steps": 2, "batch_size": 4, "pictures": False, "out": tmp_path / "run"}
    if not recipe.method.startswith("imagegpt"):
        small["model_args"] = {**recipe.model_args, "depth": 1, "embed_dim": 48, "num_heads": 2}
        small["method_args"] = {**recipe.method_args, **SMALLER.get(recipe.method, {})}
    if recipe.image_size is not None:
        small["image_size"] = (32, 32)
    pretrain(dataclasses.replace(recipe, **small))
    assert (tmp_path / "run" / "pretrainer.safetensors").exists()


def test_a_recipe_is_run_from_the_command_line(tmp_path: Path) -> None:
    call = ["pretrain", "--config", str(RECIPES["digits_mae"]), "--out", str(tmp_path / "run")]
    with few_digits():
        assert main([*call, "--steps", "1", "--batch_size", "4", "--model_args.depth", "1"]) == 0
    assert Recipe.load(tmp_path / "run" / "config.yaml").model_args == {"depth": 1, "embed_dim": 96, "num_heads": 3}


def test_a_placeholder_is_told_for_what_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pretrain", "--config", str(RECIPES["imagenet_mae"]), "--out", str(tmp_path / "run")]) == 2
    assert "path/to/imagenet/train is not there" in capsys.readouterr().err
