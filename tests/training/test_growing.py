"""Images that grow during a run: what is learned before the switch, resuming across it, and which models can."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from patchcast.backbones import Backbone, CannotError, wrap
from patchcast.cli import main
from patchcast.data import Augment, TrainSet, open_images
from patchcast.geometry import Grid
from patchcast.methods import ijepa, mae
from patchcast.positions import Positions
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe
from patchcast.runs.sizes import SEVERAL, for_several_sizes
from patchcast.schedules import image_sizes
from patchcast.training.engine import Engine
from patchcast.training.log import curve
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization
from patchcast.training.stream import Stream
from tests import methods
from tests.backbones.zoo import BY_NAME, NAMES, build, representative
from tests.training.test_run import killed_at
from tests.without_values import Waits

SWITCH, STEPS = 6, 12
METHODS = {
    "mae": lambda backbone: mae(backbone, decoder_width=32, decoder_depth=1),
    "ijepa": lambda backbone: ijepa(backbone, predictor_width=32, predictor_depth=1),
}
SMALL = ["--model", "test_vit", "--model_args", '{"depth": 1, "embed_dim": 32, "num_heads": 2}', "--patch_size", "2"]
SHORT = ["--data", "digits", "--steps", "4", "--batch_size", "8", "--no_pictures", "--device", "cpu"]


def tiny(method: str) -> Pretrainer:
    torch.manual_seed(0)
    vit = wrap(
        "test_vit", img_size=8, patch_size=2, in_chans=1, depth=2, drop_path_rate=0.2, dynamic_img_size=True
    )  # fmt: skip
    return METHODS[method](vit)


def set_of(side: int) -> TrainSet:
    return TrainSet(open_images("digits"), Augment((side, side), (0.4, 1.0), False, (0.3,), (0.4,)), seed=3)


def run(pretrainer: Pretrainer, out: Path, *, grows: bool = True, ahead: bool = False) -> None:
    """Twelve steps, the first six of them on images of 6 pixels instead of 8; or all of them, if nothing grows."""
    later = [(SWITCH, set_of(8))] if grows else []
    stream = Stream(set_of(6), batch_size=16, steps=STEPS, seed=3, workers=0, later=later, ahead=ahead)
    engine = Engine(precision="fp32", device="cpu", log_every=1, eval_every=STEPS, checkpoint_every=5)
    train(pretrainer, stream, None, optimization=Optimization(lr=1e-3), engine=engine, out=out, title="test")


@pytest.mark.parametrize("method", METHODS)
def test_losses_before_the_switch_are_those_of_the_smaller_size(method: str, tmp_path: Path) -> None:
    """And the learning rate knows nothing of sizes."""
    run(tiny(method), tmp_path / "small", grows=False)
    run(tiny(method), tmp_path / "grows")
    small, grows = (curve(tmp_path / name / "metrics.csv", "loss")[1] for name in ("small", "grows"))
    assert small[:SWITCH] == grows[:SWITCH]
    assert all(one != other for one, other in zip(small[SWITCH:], grows[SWITCH:], strict=True))
    rates = [curve(tmp_path / name / "metrics.csv", "lr") for name in ("small", "grows")]
    assert rates[0] == rates[1]


@pytest.fixture(scope="module")
def whole(few_digits: None, tmp_path_factory: pytest.TempPathFactory) -> Pretrainer:
    """I-JEPA after a run that nothing stops."""
    pretrainer = tiny("ijepa")
    run(pretrainer, tmp_path_factory.mktemp("whole"))
    return pretrainer


@pytest.mark.parametrize("kill_at", [SWITCH - 2, SWITCH, SWITCH + 2])
def test_it_resumes_to_the_bit_across_the_switch(kill_at: int, whole: Pretrainer, tmp_path: Path) -> None:
    """The teacher of I-JEPA included; the last checkpoint before is at step 0, 5 or 5."""
    killed, resumed = tiny("ijepa"), tiny("ijepa")
    with killed_at(kill_at):
        run(killed, tmp_path / "killed", ahead=True)
    run(resumed, tmp_path / "killed", ahead=kill_at == SWITCH)
    assert any(name.startswith("target.") for name in whole.state_dict())
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_positions_of_added_grids_are_not_copied_to_the_device() -> None:
    positions, waits = Positions(Grid(4, 4), 8), Waits()
    expected = positions(Grid(2, 3))
    positions.add(Grid(2, 3))
    positions.add(Grid(4, 4))
    assert torch.equal(positions(Grid(2, 3)), expected)
    assert list(positions.state_dict()) == []
    positions.to("meta")
    with waits:
        assert positions(Grid(2, 3)).is_meta
        assert positions(Grid(4, 4)).is_meta
    assert waits.noted == []
    with waits:
        positions(Grid(3, 3))
    assert waits.noted


@pytest.mark.parametrize("name", representative(NAMES))
def test_every_family_that_can_take_another_size(name: str) -> None:
    """A step of each method at twice the height; models that were not built for it are refused by `grid`."""
    backbone = any_size(name)
    if backbone is None:
        return
    height, width = backbone.image_size
    images = torch.randn(2, backbone.channels, 2 * height, width)
    grid, passed = backbone.grid(images), []
    for method in ("mae", "simmim", "ijepa", "aim"):
        try:
            pretrainer = methods.build(method, deepcopy(backbone))
        except CannotError:
            continue
        output = pretrainer(images)
        output.loss.backward()
        assert output.plan.grid == grid
        assert bool(output.loss.isfinite())
        passed.append(method)
    assert "simmim" in passed


def any_size(name: str) -> Backbone | None:
    for args in SEVERAL:
        try:
            backbone = build(name, **BY_NAME[name], **args)
        except (TypeError, ValueError):
            continue
        if backbone.takes_any_size:
            return backbone.train()
    return None


def recipe(model: str, *sizes: str) -> Recipe:
    return Recipe("simmim", model, "digits", Path("out"), sizes=sizes)


@pytest.mark.parametrize(
    ("model", "sizes", "args"),
    [
        ("vit_tiny_patch16_224", ("112@0", "224@0.5"), {"dynamic_img_size": True}),
        ("eva02_tiny_patch14_224", ("112@0", "224@0.5"), {"dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", ("128x224@0", "224@0.5"), {"strict_img_size": False}),
        ("pvt_v2_b0", ("32@0", "64@0.25", "96@0.5"), {}),
    ],
)
def test_the_argument_for_several_sizes(model: str, sizes: tuple[str, ...], args: dict[str, Any]) -> None:
    assert for_several_sizes(recipe(model, *sizes), None).model_args == args


@pytest.mark.parametrize(
    ("model", "sizes", "sentence"),
    [
        ("levit_128s", ("112@0", "224@0.5"), "levit_128s takes images of one size only, or not all of 112@0 224@0.5"),
        ("vit_tiny_patch16_224", ("100@0", "224@0.5"), "of 16x16 pixels, do not divide images of 100x100.* 96x96 is"),
    ],
)
def test_models_that_cannot_are_refused(model: str, sizes: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        for_several_sizes(recipe(model, *sizes), None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["64"], "sizes are written PIXELS@SHARE, such as 64@0 96@0.5, or 64x96@0; got '64'"),
        (["64@0"], "sizes are two or more; for one, give image_size; got 64@0"),
        (["64@0.1", "96@0.5"], "sizes begin at 0 and go on at larger shares of the steps, below 1"),
        (["64@0", "96@1.0"], "sizes begin at 0"),
        (["64@0", "96@0.5", "128@0.5"], "sizes begin at 0"),
        (["96@0", "64@0.5"], "sizes grow during a run; got 96@0 64@0.5"),
        (["64x96@0", "96x64@0.5"], "sizes grow"),
    ],
)
def test_what_is_no_schedule_of_sizes(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        image_sizes(words)


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what comes before, and opens again with its trained weights."""
    out = tmp_path / "run"
    command = ["pretrain", "--method", "mae", *SMALL, *SHORT, "--out", str(out)]
    assert main([*command, "--sizes", "4@0", "8@0.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4x4 units of 2x2 pixels; before, 4x4 up to step 2" in said
    assert "waiting for images" in said
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["sizes"] == ["4@0", "8@0.5"]
    assert config["image_size"] == [8, 8]
    assert main([*command, "--sizes", "4@0", "8@0.5"]) == 2
    assert "holds this run already, finished after 4 steps" in capsys.readouterr().err, "and no other recipe"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sizes", "4@0", "8@0.5", "--image_size", "16"], "the last of sizes is that of the network, 8x8, and"),
        (["--sizes", "4@0", "8@0.5", "--tile_size", "8"], "tiles have one size: leave out sizes or tile_size"),
        (["--sizes", "3@0", "8@0.5"], "of 2x2 pixels, do not divide images of 3x3, one of sizes; 4x4 is the nearest"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["pretrain", "--method", "mae", *SMALL, *SHORT, "--out", str(out), *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
