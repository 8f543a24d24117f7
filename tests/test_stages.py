"""Nothing is silent for long: long stages are shown, and progress has numbers from the second step on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from patchcast import stages
from patchcast.early_checks import check_recipe
from patchcast.recipe import Recipe
from patchcast.stages import stage
from patchcast.training.progress import ProgressLine, Throughput


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_shown", True)


def stage_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stage"]


@pytest.mark.usefixtures("shown")
def test_a_stage_is_shown_when_it_takes_longer(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("Counting sheep", after=0.0):
        for thread in stage_threads():
            thread.join()  # in a log file it ends with its one line
    assert capsys.readouterr().err == "Counting sheep ...\n"
    with stage("Counting sheep", after=1e6):
        assert stage_threads()
    assert capsys.readouterr().err == ""


def test_the_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("Counting sheep", after=0.0):
        assert not stage_threads()
    assert capsys.readouterr().err == ""


class Batches:
    batch_size, waited = 16, 0.0


def test_progress_has_loss_and_time_left_from_the_second_step_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 3 s after one of 60 s: the first does not count for the time left."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    line = ProgressLine("mae", Throughput(Batches()), steps=1000, first=0, blind=1.0)
    with line:
        for step, seconds in ((1, 61.0), (2, 3.0), (3, 3.0)):
            clock[0] += seconds
            line.show(step, 0.5)
        line.evaluated({"step": 3, "eval_loss": 0.25, "knn_accuracy": 0.5})
    begun, first, second, third, evaluated = capsys.readouterr().out.splitlines()
    assert begun == "mae: 1,000 steps to do."
    assert first == "mae: step 1 of 1,000, loss 0.5000 (blind 1.00)"
    assert second == "mae: step 2 of 1,000, loss 0.5000 (blind 1.00), 50 min left"
    assert third.endswith("50 min left")
    assert evaluated == "mae: after step 3, held-out loss 0.2500, nearest neighbors 50.0%"


def test_the_bar_is_followed_by_what_fits_a_terminal() -> None:
    throughput = Throughput(Batches())
    throughput.rate, throughput.waiting = 1310.0, 0.14
    line = ProgressLine("mae", throughput, steps=2000, first=0, blind=1.0)
    line.loss, line.begun = 0.61345, 0.0
    state = line._state(1001, 100.0, brief=True)
    assert state == "loss 0.613 (blind 1.00), 100 s left, 1,310 images/s, data 14%"
    assert len(f"mae 1001/2000 {state}") < 80


def test_a_model_that_cannot_run_a_method_is_refused_with_what_it_can_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot run mae; it can run .*simmim"):
        check_recipe(Recipe("mae", "swin_tiny_patch4_window7_224", "digits", tmp_path / "run"))
