"""What a run will take is said before it starts, and what it leaves to measurement is decided once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patchcast.cli import main
from patchcast.commands import pretrain as command
from patchcast.commands.pretrain import dry_run, pretrain
from patchcast.recipe import OptimizerName, Recipe, Resolved
from patchcast.runs import forecast as module
from patchcast.runs import speed
from patchcast.runs.costs import Memory
from patchcast.runs.forecast import Forecast, fitting_pieces, foresee, out_of_memory
from patchcast.runs.run import start_run
from patchcast.runs.speed import Choice, Rehearsal
from patchcast.training import loop

pytestmark = pytest.mark.usefixtures("few_digits", "_no_figures")

FASTER = Choice(1.39, "", "a processor", "explicit")


def recipe(out: Path, method: str = "mae", **options: Any) -> Recipe:
    small = {"decoder_width": 32, "decoder_depth": 1}
    given = {"method_args": small, "workers": 0, "pictures": False, "device": "cpu", "batch_size": 16, "held_out": 0.0}
    given |= {"model_args": {"depth": 1}, "mean": (0.3,), "std": (0.4,)}
    return Recipe(method, "test_vit", "digits", out, **{**given, **options})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(speed, "STEP_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fixed_speed(monkeypatch: pytest.MonkeyPatch, seconds_per_image: float) -> None:
    """As if every image took this long, whatever the machine does."""
    monkeypatch.setattr(Rehearsal, "grow", lambda self, _: seconds_per_image * len(self.images))
    monkeypatch.setattr(Rehearsal, "rate", lambda *_: 1 / seconds_per_image)
    monkeypatch.setattr(Rehearsal, "evaluation_seconds", lambda *_: 0.0)
    monkeypatch.setattr(Rehearsal, "update_seconds", lambda *_: 0.0)
    monkeypatch.setattr(Rehearsal, "data_seconds", property(lambda _: 0.0, lambda *_: None), raising=False)


def test_a_short_run_and_a_given_precision_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_precision", lambda _: pytest.fail("compared"))
    short = recipe(tmp_path, steps=2)
    run, forecast = foresee(start_run(short), short)
    assert (run.recipe.precision, forecast.choice, forecast.memory) == ("fp32", None, None)
    fixed_speed(monkeypatch, 1.0)
    long = recipe(tmp_path, steps=1000, precision="fp32")
    assert foresee(start_run(long), long)[1].choice is None


def test_a_long_run_is_compared_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_speed(monkeypatch, 0.25)
    asked = recipe(tmp_path / "run", steps=1000)
    run = start_run(asked)
    with monkeypatch.context() as patch:
        patch.setattr(Rehearsal, "compare", lambda _: FASTER)
        decided, forecast = foresee(run, asked)
    assert (decided.recipe.precision, decided.recipe.attention, forecast.choice) == ("bf16", "explicit", FASTER)
    assert str(forecast).startswith("1,000 steps, about 67 min, ")
    assert str(forecast).endswith(" GB of memory; --minutes 10 makes it shorter")
    monkeypatch.setattr(Rehearsal, "compare", lambda _: pytest.fail("compared again"))
    assert speed.choose_precision(Rehearsal(run)) == FASTER
    [file] = (tmp_path / "cache").rglob("*.json")
    file.write_text("{broken")
    with pytest.raises(pytest.fail.Exception, match="compared again"):
        speed.choose_precision(Rehearsal(run))


def test_a_run_keeps_what_was_decided_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed and resumed by the same command: the same weights as without a stop."""
    fixed_speed(monkeypatch, 0.625)
    monkeypatch.setattr(module, "choose_precision", lambda _: FASTER)
    monkeypatch.setattr(module, "free_memory", lambda _: 10**12)
    left = {"precision": "auto", "minutes": 1.0, "batch_size": "auto", "eval_every": 100, "checkpoint_every": 2}

    monkeypatch.setattr("patchcast.runs.defaults._batch", lambda *_: (32, "small"))
    asked = recipe(tmp_path / "whole", **left)
    resolved = pretrain(asked)
    assert (resolved.steps, resolved.batch_size, resolved.accumulate, resolved.precision) == (3, 32, 1, "bf16")
    assert Resolved.load(asked.out / "config.yaml") == resolved
    assert resolved.attention == "explicit"

    stopped, ending = replace(asked, out=tmp_path / "stopped"), loop.Ending.agreed
    monkeypatch.setattr(loop.Ending, "agreed", lambda self: True)
    with pytest.raises((InterruptedError, KeyboardInterrupt)):
        pretrain(stopped)
    monkeypatch.setattr(loop.Ending, "agreed", ending)
    monkeypatch.setattr(command, "foresee", lambda *_: pytest.fail("decided again"))
    with pytest.raises(ValueError, match=r"holds a run of 1 minutes, not of 2 minutes; choose another --out"):
        pretrain(replace(stopped, minutes=2.0))
    pretrain(stopped)
    assert all(
        (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
        for name in ("pretrainer.safetensors",)
    )


def test_minutes_decide_steps_and_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_speed(monkeypatch, 0.01)
    asked = recipe(tmp_path, minutes=2.0, method="ijepa", method_args={"predictor_width": 32, "predictor_depth": 1})
    run, forecast = foresee(start_run(asked), asked)
    assert run.recipe.steps == forecast.steps == 750  # 120 s / 0.16 s
    assert (run.recipe.eval_every, run.recipe.checkpoint_every) == (75, 75)
    assert run.recipe.epochs == round(750 * 16 / 288, 2)
    assert run.pretrainer.target.steps == 750
    monkeypatch.setattr(Rehearsal, "evaluation_seconds", lambda *_: 100.0)  # ten would leave nothing
    few, forecast = foresee(start_run(asked), asked)
    assert few.recipe.steps == 375
    assert few.recipe.eval_every == 38  # ten evaluations, not eleven
    assert forecast.seconds == pytest.approx(60 + 10 * 100)


def test_one_way_to_say_how_long(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes=5 and steps=3 both say how long to train; leave one out"):
        recipe(tmp_path, minutes=5.0, steps=3).check()
    with pytest.raises(ValueError, match="minutes=5 and epochs=3 both"):
        recipe(tmp_path, minutes=5.0, epochs=3.0).check()
    several = recipe(tmp_path, minutes=5.0, devices=2)
    with pytest.raises(ValueError, match="give steps"):
        foresee(start_run(several), several)


def test_pieces_follow_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(tmp_path, batch_size=32)
    run = start_run(asked)
    monkeypatch.setattr(module, "step_memory", lambda _, count, **__: Memory(10**9, 2 * 10**9, count * 10**9))
    assert [fitting_pieces(run, lambda free=free: int(free / module.FREE_SHARE)) for free in (36e9, 34e9, 5e9)] == [
        1,
        2,
        16,
    ]
    with pytest.raises(ValueError, match=r"a step of 1 images needs 4.0 GB, and 0.0 are free; give --checkpointing"):
        fitting_pieces(run, lambda: 0)


def test_used_up_memory_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        torch.empty(2**60)

    sentence = "too small for 16 images at once; --accumulate 2 takes 8 at once"
    with monkeypatch.context() as patch:
        patch.setattr("patchcast.runs.pretraining.train", fail)
        with pytest.raises(ValueError, match=sentence):
            pretrain(recipe(tmp_path / "run", steps=2))
    monkeypatch.setattr(Rehearsal, "grow", fail)
    with pytest.raises(ValueError, match=sentence):
        dry_run(recipe(tmp_path / "dry", steps=2))
    one = replace(start_run(recipe(tmp_path / "other", batch_size=1, steps=2)).recipe)
    assert "for 1 images at once; give --checkpointing" in out_of_memory(torch.OutOfMemoryError(), one)
    assert out_of_memory(RuntimeError("something else"), one) == ""


def test_a_dry_run_says_everything_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--method", "mae", "--model", "test_vit", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--model_args.depth", "1", "--steps", "20", "--batch_size", "16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for title in (
        "parameters  ",
        "memory      ",
        "work        ",
        "speed       ",
        "time        about ",
        "steps       20,",
    ):
        assert f"\n{title}" in said
    assert not (tmp_path / "run").exists()


def test_a_long_run_asks_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(command.Confirm, "ask", lambda *words, **_: asked.append(words[0]) or False)
    hours = Forecast(10, 5, seconds=7200.0)
    command._announce(hours, command.Console())
    assert not asked
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    terminal = command.Console(force_terminal=True)
    command._announce(replace(hours, seconds=60.0), terminal)
    assert not asked
    with pytest.raises(KeyboardInterrupt, match="not started"):
        command._announce(hours, terminal)
    assert asked == ["Start?"]


def test_dry_run_in_python(tmp_path: Path) -> None:
    forecast = dry_run(recipe(tmp_path / "run", steps=5, epochs=100.0))
    assert forecast.steps == 5
    assert forecast.flops > 0
    assert forecast.memory.peak > 0


def test_images_that_grow_take_their_own_time_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the steps on 4 pixels, the rest on 8, where an image takes four times as long."""
    fixed_speed(monkeypatch, 1.0)
    monkeypatch.setattr(Rehearsal, "rate", lambda self, _: 16 / self.images.shape[-1] ** 2)
    asked = recipe(tmp_path, steps=400, precision="fp32", patch_size=2, sizes=("4@0", "8@0.25"))
    _, forecast = foresee(start_run(asked), asked)
    assert forecast.rate == pytest.approx(1 / (0.25 * 1 + 0.75 * 4))


def test_the_update_is_taken_once_for_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of images in a batch, and a tenth of that for what follows their gradients."""
    fixed_speed(monkeypatch, 1.0)
    monkeypatch.setattr(Rehearsal, "update_seconds", lambda *_: 1.0)
    asked = recipe(tmp_path, steps=100, batch_size=10, precision="fp32")
    _, forecast = foresee(start_run(asked), asked)
    assert forecast.rate == pytest.approx(10 / 11)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_measuring_leaves_the_weights(optimizer: OptimizerName, tmp_path: Path) -> None:
    asked = recipe(tmp_path, steps=2, method="simmim", method_args={}, optimizer=optimizer)
    rehearsal = Rehearsal(start_run(asked))
    before = {name: value.clone() for name, value in rehearsal.pretrainer.state_dict().items()}
    assert rehearsal.update_seconds("fp32") > 0
    assert rehearsal.grow("fp32") > 0
    for name, value in rehearsal.pretrainer.state_dict().items():
        assert torch.equal(value, before[name]), name
