"""Runs that are killed, asked to end, or stopped by a full disk, a damaged checkpoint or a loss that is no number."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.training.checkpoints import is_whole, latest_checkpoint
from patchcast.training.guard import BAD_BATCH, NotFinite
from patchcast.training.log import curve, read_metrics
from tests.training.test_run import KillAt, Killed, run, tiny

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150


def command(method: str, out: Path) -> list[str]:
    small = ["--model_args", '{"depth": 1, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.2}']
    often = ["--steps", str(STEPS), "--batch_size", "16", "--checkpoint_every", "7", "--eval_every", "20"]
    return [
        "pretrain",
        "--method",
        method,
        "--model",
        "test_vit",
        "--data",
        "digits",
        "--out",
        str(out),
        *small,
        *often,
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "patchcast", *arguments]
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while not list(out.glob("checkpoints/step=*.ckpt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.01)


def test_a_process_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL, the teacher's state included: the weights and the log end the same to the bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(command("ijepa", broken))
    wait_for_checkpoint(broken, process)
    time.sleep(random.Random(0).random() / 4)
    process.kill()
    process.communicate()
    assert not (broken / "pretrainer.safetensors").exists(), "killed too late to show anything"
    assert main(command("ijepa", broken)) == 0
    assert main(command("ijepa", whole)) == 0
    one, two = (load_file(out / "pretrainer.safetensors") for out in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    logged = ("step", "loss", "eval_loss", "lr", "feature_rank")
    rows = [[{key: row[key] for key in logged} for row in read_metrics(out / "metrics.csv")] for out in (whole, broken)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_process_asked_to_end_saves_first(devices: int, tmp_path: Path) -> None:
    """Of two, only the first is asked."""
    long = ["--checkpoint_every", "100000", "--steps", "100000", "--devices", str(devices)]
    process = start([*command("mae", tmp_path / "run"), *long])
    metrics = tmp_path / "run" / "metrics.csv"
    until = time.monotonic() + 600
    while not (metrics.exists() and read_metrics(metrics)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 143
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert is_whole(saved)
    step = int(saved.stem.removeprefix("step="))
    assert f"asked to end (SIGTERM) at step {step:,}, and saved; the same command goes on" in told.splitlines()[-1]
    assert told.count("asked to end") == 1


class AskToEnd(L.Callback):
    """Sends the signal while the piece of a batch is computed, or while held-out images are judged."""

    def __init__(self, *, step: int, piece: int | None = None) -> None:
        self.step, self.piece = step, piece

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
        is_piece = index % trainer.accumulate_grad_batches == self.piece
        if trainer.global_step == self.step and is_piece:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.piece is None:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("accumulate", "ask", "saved"),
    [
        pytest.param(1, AskToEnd(step=6), 7, id="held-out images"),
        pytest.param(4, AskToEnd(step=6), 7, id="held-out images, with pieces"),
        pytest.param(1, AskToEnd(step=7, piece=0), 8, id="a step"),
        pytest.param(4, AskToEnd(step=7, piece=1), 8, id="a piece"),
        pytest.param(4, AskToEnd(step=7, piece=3), 8, id="the last piece"),
    ],
)
def test_a_run_asked_to_end_at_any_moment_goes_on_to_the_bit(
    accumulate: int, ask: AskToEnd, saved: int, tmp_path: Path
) -> None:
    whole, broken, resumed = tiny("mae"), tiny("mae"), tiny("mae")
    run(whole, tmp_path / "whole", accumulate=accumulate)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedError, match=f"at step {saved}, and saved"):
        run(broken, tmp_path / "broken", accumulate=accumulate, extra_callbacks=[ask])
    assert signal.getsignal(signal.SIGTERM) is handler
    assert latest_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoints" / f"step={saved}.ckpt"
    run(resumed, tmp_path / "broken", accumulate=accumulate)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for metric in ("loss", "eval_loss"):
        assert curve(tmp_path / "whole" / "metrics.csv", metric) == curve(tmp_path / "broken" / "metrics.csv", metric)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    whole, broken, resumed = tiny("mae"), tiny("mae"), tiny("mae")
    run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(broken, tmp_path / "broken", extra_callbacks=[KillAt(11)])
    last = latest_checkpoint(tmp_path / "broken")
    assert last is not None
    assert last.name == "step=10.ckpt"
    data = bytearray(last.read_bytes())
    match damage:
        case "cut":
            del data[len(data) // 2 :]
        case "flipped":  # in the middle of the weights, where no structure would tell
            data[len(data) // 2] ^= 1
        case "empty":
            data.clear()
        case "text":
            data[:] = b"not a checkpoint\n"
    last.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step=10\.ckpt is damaged and passed over"):
        run(resumed, tmp_path / "broken")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is full at the second checkpoint; with room again, the same command goes on."""
    calls = iter(range(100))
    sync = os.fsync

    def full(file: int) -> None:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "run"
    assert main(command("mae", out)) == 2
    assert "is full; make room, and the same command goes on from the last checkpoint" in capsys.readouterr().err
    assert [each.name for each in (out / "checkpoints").iterdir()] == ["step=7.ckpt"]
    assert main(command("mae", out)) == 0


class Poison(L.Callback):
    """Makes a weight NaN (so that the next loss is) or a gradient, at a step."""

    def __init__(self, step: int, *, gradient: bool) -> None:
        self.step, self.gradient = step, gradient

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            weight = next(each for each in module.parameters() if each.requires_grad)
            (weight.grad if self.gradient else weight).fill_(float("nan"))


def test_a_loss_that_is_no_number_ends_the_run_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"the loss of step 8 is nan; its images are in .*bad-batch.safetensors; the"):
        run(tiny("mae"), tmp_path, extra_callbacks=[Poison(6, gradient=False)])
    assert load_file(tmp_path / BAD_BATCH)["images"].shape == (16, 1, 8, 8)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step=5.ckpt"]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    """The gradient overflows in the very step that is to be saved: its loss was still a number."""
    with pytest.raises(NotFinite, match="after step 10"):
        run(tiny("mae"), tmp_path, extra_callbacks=[Poison(9, gradient=True)])
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step=5.ckpt"]


def test_two_checkpoints_are_kept_and_no_parts(tmp_path: Path) -> None:
    run(tiny("mae"), tmp_path, steps=17)
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step=15.ckpt", "step=17.ckpt"]
