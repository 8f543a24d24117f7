"""Default sizes: about as many units as the model has on its own size, for any data and any family."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchcast.backbones import wrap
from patchcast.data import open_images
from patchcast.geometry import Grid
from patchcast.recipe import Recipe
from patchcast.runs.build import timm_args
from patchcast.runs.run import start_run
from patchcast.runs.sizes import Size, fitted, size_and_patch, with_own_options

pytestmark = pytest.mark.usefixtures("_no_figures")

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


def recipe(model: str = VIT, **options: object) -> Recipe:
    return Recipe("simmim", model, "digits", Path("run"), **options)  # type: ignore[arg-type]


def test_any_size_gives_about_as_many_units_as_the_model_has() -> None:
    for height in range(14, 224, 7):
        for width in range(14, 224, 9):
            (rows, cols), patch = fitted((height, width), Grid(14, 14), 16)
            units = (rows // patch) * (cols // patch)
            assert rows % patch == cols % patch == 0
            assert 49 / 2 <= units <= 4 * 196, (height, width, units)
            change = max(abs(math.log(rows / height)), abs(math.log(cols / width)))
            assert change < 0.2, (height, width, rows, cols)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((218, 178), ((216, 180), 12)),
        ((202, 202), ((204, 204), 12)),
        ((97, 97), ((98, 98), 7)),
        ((62, 47), ((63, 48), 3)),
        ((64, 64), ((64, 64), 8)),
        ((32, 32), ((32, 32), 4)),
        ((8, 8), ((8, 8), 2)),
        ((224, 224), ((224, 224), None)),
        ((500, 375), ((224, 224), None)),
    ],
)
def test_a_vit_resizes_to_the_nearest_size_that_a_patch_divides(size: Size, expected: tuple[Size, int | None]) -> None:
    assert size_and_patch(recipe(), size) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (SWIN, (160, 160)),
        ("hiera_tiny_224", (160, 160)),
        ("vit_tiny_r_s16_p8_224", (160, 160)),  # patch_size is of its stem's map there
        ("resnet18", (160, 160)),
        ("nest_tiny", (160, 160)),
        ("levit_128s", (224, 224)),  # its units are of 56 pixels at 224 and of 64 elsewhere
        ("efficientformer_l1", (224, 224)),
    ],
)
def test_other_families_get_enlarged_images(model: str, expected: Size) -> None:
    assert size_and_patch(recipe(model), (64, 64)) == (expected, None)


def test_enlarged_images_keep_their_shape_where_the_model_lets_them() -> None:
    assert size_and_patch(recipe(SWIN), (48, 96)) == ((128, 224), None)
    (height, width), patch = size_and_patch(recipe("nest_tiny"), (48, 96))
    assert (height == width, patch) == (True, None)


def test_pretrained_weights_keep_their_patch() -> None:
    assert size_and_patch(recipe(pretrained=True), (64, 64)) == ((224, 224), None)


def test_given_sizes_are_taken_or_refused() -> None:
    assert size_and_patch(recipe(image_size=(96, 96), patch_size=12), (500, 500)) == ((96, 96), 12)
    assert size_and_patch(recipe(image_size=(384, 384)), (500, 500)) == ((384, 384), None)
    assert size_and_patch(recipe(patch_size=12), (500, 500)) == ((228, 228), 12)
    with pytest.raises(ValueError, match=r"no patch of up to 16 pixels .* --image_size 98 98 .in patches of 7"):
        size_and_patch(recipe(image_size=(97, 97)), (500, 500))
    with pytest.raises(ValueError, match=r"12 pixels do not divide images of 97x97; .* --image_size 96 96"):
        size_and_patch(recipe(image_size=(97, 97), patch_size=12), (500, 500))


def test_sizes_among_model_args_are_options_of_the_recipe() -> None:
    moved = with_own_options(recipe(model_args={"img_size": 96, "patch_size": [8, 8], "in_chans": 1, "depth": 1}))
    assert (moved.image_size, moved.patch_size, moved.channels, moved.model_args) == ((96, 96), 8, 1, {"depth": 1})
    with pytest.raises(ValueError, match="img_size 96, and image_size is"):
        with_own_options(recipe(image_size=(64, 64), model_args={"img_size": 96}))
    with pytest.raises(ValueError, match="img_size 'big'; leave it out and give --image_size"):
        with_own_options(recipe(model_args={"img_size": "big"}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nope": 3}, "vit_tiny_patch16_224 has no argument 'nope'"),
        ({"drop_rate": "x"}, "cannot be built with these model_args: .*str"),
    ],
)
def test_arguments_that_timm_cannot_take_are_one_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        size_and_patch(recipe(model_args=wrong), (64, 64))


def test_a_folder_of_mixed_sizes_has_their_median(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(40, 90), (60, 70), (62, 74), (64, 80), (90, 40)]):
        Image.fromarray(np.full((height, width, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    assert open_images(str(tmp_path)).typical_size == (62, 74)
    resolved = start_run(Recipe("mae", VIT, str(tmp_path), tmp_path / "run", model_args={"depth": 1})).recipe
    backbone = wrap(resolved.model, **timm_args(resolved))
    grid = backbone.grid(resolved.image_size)
    assert 98 <= grid.rows * grid.cols <= 392


SLIPS = [
    ("model_args", {"depth": 0}, "test_vit cannot be built with these model_args"),
    ("model_args", {"num_heads": 0}, "cannot be built with these model_args"),
    ("model_args", {"act_layer": "nope"}, "cannot be built with these model_args: KeyError 'nope'"),
    ("model_args", {"depth": 100_000}, "more than 1,000 blocks is not built; got depth: 100000"),
    ("model_args", {"num_heads": -2}, "must be finite and not negative; got num_heads: -2"),
    ("model_args", {"init_values": float("inf")}, "must be finite and not negative; got init_values: inf"),
    ("model_args", {"drop_path_rate": 2}, "rates in model_args must be below 1; got drop_path_rate: 2"),
    ("model_args", {"pretrained": True}, "leave it out and give --pretrained"),
    ("model_args", {"checkpoint_path": "nowhere.pth"}, "a checkpoint_path that is not there: nowhere.pth"),
    ("method_args", {"mask_ratio": "x"}, "mae's mask_ratio is a number; got 'x'"),
    ("method_args", {"normalize": "no"}, "mae's normalize is true or false; got 'no'"),
    ("method_args", {"decoder_depth": 10**6}, "more than 1,000 blocks is not built"),
    ("method_args", {"decoder_heads": 0}, "mae's decoder_heads is a whole number, 1 or more; got 0"),
    ("method_args", {"mask_ratio": float("nan")}, "numbers in method_args must be finite"),
    ("tile_size", 60_000, r"are [0-9,]+ units of .* give a smaller image_size or tile_size"),
    ("image_size", (60_000, 60_000), r"are [0-9,]+ units of .* give a smaller image_size or tile_size"),
    ("batch_size", 10**9, "batch_size must be at most 1,000,000; got 1000000000"),
    ("workers", 10**5, "workers must be at most 1,024"),
    ("epochs", 1e30, "steps must be at most 2,147,483,647"),
    ("mean", (), "mean needs a number"),
]


@pytest.mark.parametrize(("option", "value", "wanted"), SLIPS)
def test_a_network_that_cannot_be_is_one_sentence(tmp_path: Path, option: str, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        start_run(Recipe("mae", "test_vit", "digits", tmp_path / "run", **{option: value}))
    assert not (tmp_path / "run").exists()


def test_one_mean_is_for_all_channels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    resolved = start_run(Recipe("mae", "test_vit", str(tmp_path), tmp_path / "run", mean=(0.5,), std=(0.1, 0.2, 0.3)))
    assert (resolved.recipe.mean, resolved.recipe.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
