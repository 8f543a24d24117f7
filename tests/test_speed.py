"""Which precision a run trains in is measured on its own network when it begins, and stays as it is."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchcast.data.images import Images
from patchcast.honesty import Leak
from patchcast.recipe import Recipe
from patchcast.runs import speed
from patchcast.runs.run import Run, start_run
from patchcast.runs.speed import Choice, Rehearsal

pytestmark = pytest.mark.usefixtures("few_digits")

FASTER = Choice(1.39, "", "a processor")


def recipe(out: Path, **options: Any) -> Recipe:
    small = {"decoder_width": 32, "decoder_depth": 1}
    given = {"method_args": small, "workers": 0, "steps": 4, "batch_size": 16, "pictures": False, "device": "cpu"}
    given |= {"model_args": {"depth": 2}, "mean": (0.3,), "std": (0.4,)}
    return Recipe("mae", "test_vit", "digits", out, **{**given, **options})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return start_run(recipe(tmp_path / "run"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(speed, "STEP_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_rule() -> None:
    assert FASTER.precision == "bf16"
    assert str(FASTER) == "bf16: 1.39 times as fast as fp32 on a processor; training in bf16"
    assert Choice(1.04, "", "a processor").precision == "fp32"
    forbidden = Choice(1.39, "its loss is nan", "a processor")
    assert str(forbidden).endswith("on a processor, but its loss is nan; training in fp32")


def test_a_rehearsal_leaves_the_run_as_it_is(run: Run) -> None:
    before = {name: value.clone() for name, value in run.pretrainer.state_dict().items()}
    chance = torch.get_rng_state()
    choice = Rehearsal(run).compare()
    assert choice.ratio > 0
    assert choice.problem == ""
    assert torch.equal(torch.get_rng_state(), chance)
    after = run.pretrainer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in run.pretrainer.parameters())


def test_a_gpu_is_measured_with_a_whole_batch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two images, an H100 was taken for 28 times as slow as it is."""
    monkeypatch.setattr(speed, "READ_AT_MOST", 5)
    monkeypatch.setattr(Rehearsal, "starts_full", True)
    rehearsal = Rehearsal(run)
    rehearsal.grow("fp32")
    assert len(rehearsal.images) == run.recipe.batch_size == 16
    assert torch.equal(rehearsal.images[:5], rehearsal.images[5:10])


def test_opening_files_is_not_reading(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, passed = Images.attempt, [0.0]

    def opens_first(images: Images, index: int) -> Any:
        passed[0] = 30.0
        return attempt(images, index)

    monkeypatch.setattr(Images, "attempt", opens_first)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: passed[0])
    assert Rehearsal(run).data_seconds == 0.0
    assert passed == [30.0]


def test_explicit_attention_where_it_is_faster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if explicit products took half the time in bf16: 2 times as fast as fp32 fused, then 4 times."""

    def seconds(self: Rehearsal, precision: str, *_: Any) -> float:
        kernels = {layer.fused_attn for layer in self.pretrainer.modules() if hasattr(layer, "fused_attn")}
        assert len(kernels) == 1
        self.step(precision)
        return {"fp32": 4.0, "bf16": 2.0}[precision] / (1 if kernels == {True} else 2)

    monkeypatch.setattr(Rehearsal, "seconds", seconds)
    choice = Rehearsal(run).compare()
    assert (choice.ratio, choice.attention) == (4.0, "explicit")
    assert str(choice).startswith("bf16 with explicit attention: 4.00 times as fast as fp32 on ")
    monkeypatch.setattr(speed, "no_leak", lambda pretrainer, *_, **__: Leak(0.0 if fused(pretrainer) else 0.5, 1.0))
    assert Rehearsal(run).compare() == Choice(2.0, "", speed.processor())


def fused(pretrainer: Any) -> bool:
    return all(layer.fused_attn for layer in pretrainer.modules() if hasattr(layer, "fused_attn"))


def test_explicit_attention_is_the_same_loss(run: Run) -> None:
    rehearsal = Rehearsal(run)
    before = rehearsal.step("fp32")
    assert speed.use_attention(rehearsal.pretrainer, "explicit") == 3  # two blocks, and one of the decoder
    assert rehearsal.step("fp32") == pytest.approx(before, rel=1e-5)


def test_steps_of_a_rehearsal_are_the_same_step(run: Run) -> None:
    rehearsal = Rehearsal(run)
    assert rehearsal.step("fp32") == rehearsal.step("fp32") != rehearsal.step("bf16")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [(float("nan"), "its loss is nan"), (1.5, "where that of fp32 is"), (lambda loss: loss * 0 / 0, "its loss is nan")],
)
def test_bf16_that_computes_something_else_is_not_used(run: Run, wrong: Any, sentence: str) -> None:
    exact, rehearsal = run.pretrainer.loss, Rehearsal(run)

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        right = exact(predictions, targets)
        if not torch.is_autocast_enabled("cpu"):
            return right
        return wrong(right) if callable(wrong) else right * wrong

    rehearsal.pretrainer.loss = loss
    assert sentence in rehearsal.problem_of_bf16()


def test_gradients_that_are_not_finite(run: Run) -> None:
    rehearsal, calls = Rehearsal(run), count()
    weight = next(rehearsal.pretrainer.backbone.model.blocks[0].parameters())
    weight.register_hook(lambda gradient: gradient / (1 - next(calls)))  # by 1 in fp32, then by 0 in bf16
    assert rehearsal.problem_of_bf16() == "its gradients are not finite"


def test_bf16_that_leaks_is_not_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "no_leak", lambda *_, **__: Leak(0.25, 1.0))
    assert Rehearsal(run).problem_of_bf16() == "hidden pixels change its predictions by 0.25"
