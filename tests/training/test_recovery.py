"""Runs that are killed, asked to end, or stopped by a full disk, a damaged checkpoint or a loss that is no number."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.data import Evaluate, open_images
from patchcast.pretrainer import Pretrainer
from patchcast.training.checkpoints import is_whole, latest_checkpoint, load_latest
from patchcast.training.guard import BAD_BATCH, NotFinite
from patchcast.training.log import curve, read_metrics
from patchcast.training.looks import FeatureWatch
from tests.forked import fork
from tests.training.test_run import before_updates, killed_at, run, tiny

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
MEASURED = ["--mean", "0.3", "--std", "0.4"]
"""Of the digits, which each run would measure again."""


def command(method: str, out: Path) -> list[str]:
    small = ["--model_args", '{"depth": 1, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.2}']
    often = ["--steps", str(STEPS), "--batch_size", "16", "--checkpoint_every", "7", "--eval_every", "25"]
    what = ["--method", method, "--model", "test_vit", "--data", "digits", "--out", str(out), "--no_pictures"]
    return ["pretrain", *what, *MEASURED, *small, *often]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "patchcast", *arguments]
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_after_a_checkpoint(arguments: list[str], out: Path) -> None:
    """Run a command into the folder, and end it by SIGKILL at some moment after its first checkpoint."""
    process = fork(lambda: main(arguments), out.with_suffix(".txt"))
    process.until(lambda: list(out.glob("checkpoints/step=*.ckpt")))
    time.sleep(random.Random(0).random() / 10)
    process.kill()
    code, printed = process.wait()
    assert code == -signal.SIGKILL, printed
    assert not (out / "pretrainer.safetensors").exists(), "killed too late to show anything"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Pretrainer, Path]]:
    """The run of `tiny("mae")` that nothing stops, made once for each number of pieces of a batch."""

    @cache
    def made(accumulate: int = 1) -> tuple[Pretrainer, Path]:
        out, pretrainer = tmp_path_factory.mktemp("undisturbed"), tiny("mae")
        run(pretrainer, out, accumulate=accumulate)
        return pretrainer, out

    return made


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed before its step 12; tests work on a copy."""
    out = tmp_path_factory.mktemp("killed")
    with killed_at(11):
        run(tiny("mae"), out)
    return out


def assert_same_weights(one: Pretrainer, two: Pretrainer) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_process_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL, the teacher's state included: the weights and the log end the same to the bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kill_after_a_checkpoint(command("ijepa", broken), broken)
    assert main(command("ijepa", broken)) == 0
    assert main(command("ijepa", whole)) == 0
    one, two = (load_file(out / "pretrainer.safetensors") for out in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    logged = ("step", "loss", "eval_loss", "lr", "feature_rank")
    rows = [[{key: row[key] for key in logged} for row in read_metrics(out / "metrics.csv")] for out in (whole, broken)]
    assert rows[0] == rows[1]


@pytest.mark.slow  # for its processes: the next test sends both signals to a run in this one
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("number", "sentence", "code"),
    [
        pytest.param(signal.SIGTERM, "asked to end (SIGTERM)", 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, "stopped (Ctrl-C)", 130, id="Ctrl-C"),
    ],
)
def test_processes_asked_to_end_save_first(
    number: signal.Signals, sentence: str, code: int, devices: int, tmp_path: Path
) -> None:
    """Of two, only the first is asked."""
    long = ["--checkpoint_every", "100000", "--steps", "100000", "--devices", str(devices)]
    process = start([*command("mae", tmp_path / "run"), *long])
    metrics = tmp_path / "run" / "metrics.csv"
    until = time.monotonic() + 600
    while not (metrics.exists() and read_metrics(metrics)) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert is_whole(saved)
    step = int(saved.stem.removeprefix("step="))
    assert f"{sentence} at step {step:,}, and saved; the same command resumes there" in errors.splitlines()[-1]
    assert errors.count(sentence) == 1
    assert int(read_metrics(metrics)[-1]["step"]) <= step


def test_a_command_asked_to_end_saves_first_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = fork(lambda: main([*command("mae", out), "--steps", "100000", "--log_every", "1"]), tmp_path / "said.txt")
    process.until(lambda: list(out.glob("checkpoints/step=*.ckpt")))
    os.kill(process.pid, signal.SIGTERM)
    code, said = process.wait()
    assert code == 143, said
    step = int(max((out / "checkpoints").iterdir(), key=os.path.getmtime).stem.removeprefix("step="))
    assert f"asked to end (SIGTERM) at step {step:,}, and saved; the same command resumes" in said.splitlines()[-1]
    assert said.count("asked to end (SIGTERM)") == 1


@pytest.mark.parametrize(
    ("number", "accumulate", "step", "piece", "saved"),
    [
        pytest.param(signal.SIGTERM, 1, 6, None, 6, id="held-out images"),
        pytest.param(signal.SIGTERM, 4, 6, None, 6, id="held-out images, with pieces", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, 7, 0, 8, id="a step"),
        pytest.param(signal.SIGTERM, 4, 7, 1, 8, id="a piece"),
        pytest.param(signal.SIGTERM, 4, 7, 3, 8, id="the last piece"),
        pytest.param(signal.SIGINT, 1, 7, 0, 8, id="a step, by Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 4, 7, 1, 8, id="a piece, by Ctrl-C"),
    ],
)
def test_a_run_asked_to_end_at_any_moment_resumes_to_the_bit(
    number: signal.Signals,
    accumulate: int,
    step: int,
    piece: int | None,
    saved: int,
    undisturbed: Callable[..., tuple[Pretrainer, Path]],
    tmp_path: Path,
) -> None:
    """The signal comes while a piece of a batch is computed, or while held-out images are: these are begun again."""
    whole, folder = undisturbed(accumulate)
    broken, resumed = tiny("mae"), tiny("mae")
    pieces, updates = 0, 0

    def ask(module: Any, inputs: Any) -> None:
        nonlocal pieces
        now = (updates, pieces % accumulate) if module.training else (updates, None)
        pieces += module.training
        if now == (step, piece) and not signalled:
            signalled.append(now)
            os.kill(os.getpid(), number)

    def update(*_: Any) -> None:
        nonlocal updates
        updates += 1

    signalled: list[Any] = []
    broken.register_forward_pre_hook(ask)
    handler = signal.getsignal(number)
    what = InterruptedError if number == signal.SIGTERM else KeyboardInterrupt
    with before_updates(update), pytest.raises(what, match=f"at step {saved}, and saved"):
        run(broken, tmp_path / "broken", accumulate=accumulate)
    assert signal.getsignal(number) is handler
    assert latest_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoints" / f"step={saved}.ckpt"
    run(resumed, tmp_path / "broken", accumulate=accumulate)
    assert_same_weights(whole, resumed)
    for metric in ("loss", "eval_loss"):
        assert curve(folder / "metrics.csv", metric) == curve(tmp_path / "broken" / "metrics.csv", metric)


def test_the_log_of_a_killed_run_has_no_rows_of_steps_that_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written at every row, so that there are rows after the checkpoint; once more killed before the next."""
    monkeypatch.setattr("patchcast.training.log.SECONDS_BETWEEN_WRITES", 0.0)
    run(tiny("mae"), tmp_path / "whole")
    with killed_at(9):
        run(tiny("mae"), tmp_path / "broken")
    assert [row["step"] for row in read_metrics(tmp_path / "broken" / "metrics.csv")] == ["2", "4", "6", "8"]
    with killed_at(3):
        run(tiny("mae"), tmp_path / "broken")
    run(tiny("mae"), tmp_path / "broken")
    assert capsys.readouterr().out.count("Resuming at step 5 of 12.") == 2
    logged = ("step", "loss", "eval_loss", "lr")
    rows = [
        [[row[key] for key in logged] for row in read_metrics(tmp_path / out / "metrics.csv")]
        for out in ("whole", "broken")
    ]
    assert rows[0] == rows[1]
    assert [row[0] for row in rows[0]] == ["2", "4", "6", "8", "10", "12"]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_run_resumed_in_other_pieces_is_the_same_run(before: int, after: int, tmp_path: Path) -> None:
    """The same batches and plans; but for rounding, where nothing drops out: that is drawn by piece."""

    def same(module: torch.nn.Module) -> None:
        module.p = module.drop_prob = 0.0  # type: ignore[assignment]

    whole, broken, resumed = (tiny("aim").apply(same) for _ in range(3))
    run(whole, tmp_path / "whole")
    with killed_at(7):
        run(broken, tmp_path / "broken", accumulate=before)
    run(resumed, tmp_path / "broken", accumulate=after)
    losses = [curve(tmp_path / out / "metrics.csv", "loss") for out in ("whole", "broken")]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-4)


@pytest.mark.parametrize("damage", ["cut", "flipped", "encrypted", "compressed", "empty", "text"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, undisturbed: Callable[..., tuple[Pretrainer, Path]], killed: Path, tmp_path: Path
) -> None:
    whole, _ = undisturbed()
    resumed = tiny("mae")
    shutil.copytree(killed, tmp_path / "broken")
    last = latest_checkpoint(tmp_path / "broken")
    assert last is not None
    assert last.name == "step=10.ckpt"
    data = bytearray(last.read_bytes())
    match damage:
        case "cut":
            del data[len(data) // 2 :]
        case "flipped":  # in the middle of the weights, where no structure would tell
            data[len(data) // 2] ^= 1
        case "encrypted":  # by the flags of the zip archive's own directory
            data[data.rindex(b"PK\x01\x02") + 8] ^= 1
        case "compressed":  # which the bytes are not
            data[data.rindex(b"PK\x01\x02") + 10] = 8
        case "empty":
            data.clear()
        case "text":
            data[:] = b"not a checkpoint\n"
    last.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step=10\.ckpt is damaged and is skipped"):
        run(resumed, tmp_path / "broken")
    assert_same_weights(whole, resumed)


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is full at the second checkpoint; with room again, the same command goes on."""
    out = tmp_path / "run"
    sync = os.fsync

    def full(file: int) -> None:
        if (out / "checkpoints" / "step=7.ckpt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(command("mae", out)) == 2
    assert "is full; make room, and the same command resumes from the last checkpoint" in capsys.readouterr().err
    assert [each.name for each in (out / "checkpoints").iterdir()] == ["step=7.ckpt"]
    assert main(command("mae", out)) == 0


def test_a_disk_that_is_full_while_tensors_are_written_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's writer makes a riddle of it."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 10_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data) or 0

    def opened(file: Path, mode: str = "r", **how: Any) -> Any:
        return (
            Full(file, "w") if mode == "wb" and file.suffix == ".partial" else file.__class__._open(file, mode, **how)
        )

    monkeypatch.setattr(Path, "_open", Path.open, raising=False)
    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        run(tiny("mae"), tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_copy_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    run(tiny("mae"), tmp_path)
    for name in ("step=30 (copy).ckpt", "step=.ckpt", "step=40.ckpt.bak"):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step=12.ckpt"


def test_a_checkpoint_that_is_whole_and_holds_something_else_is_passed_over(tmp_path: Path) -> None:
    run(tiny("mae"), tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "checkpoints" / "step=30.ckpt")
    with pytest.warns(UserWarning, match=r"step=30\.ckpt is damaged and is skipped"):
        found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 12


def poison(step: int, *, gradient: bool) -> Callable[[int, Any], None]:
    """Make a weight NaN (so that the next loss is) or a gradient, at a step."""

    def action(number: int, optimizer: Any) -> None:
        if number == step:
            weight = optimizer.param_groups[0]["params"][0]
            with torch.no_grad():
                (weight.grad if gradient else weight).fill_(float("nan"))

    return action


def test_a_loss_that_is_no_number_ends_the_run_at_its_step(tmp_path: Path) -> None:
    images = r"the loss of step 8 is nan; its images are in .*bad-batch.safetensors; the"
    with before_updates(poison(6, gradient=False)), pytest.raises(NotFinite, match=images):
        run(tiny("mae"), tmp_path)
    assert load_file(tmp_path / BAD_BATCH)["images"].shape == (16, 1, 8, 8)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step=5.ckpt"]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    """The gradient overflows in the very step that is to be saved: its loss was still a number."""
    with before_updates(poison(9, gradient=True)), pytest.raises(NotFinite, match="after step 10, 1 parameters are"):
        run(tiny("mae"), tmp_path)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step=5.ckpt"]
    assert (tmp_path / BAD_BATCH).exists()


def test_divergence_that_shows_at_an_evaluation(tmp_path: Path) -> None:
    """Where singular values would be asked for; and weights that are finite may give features that are not."""
    with before_updates(poison(5, gradient=True)), pytest.raises(NotFinite, match="after step 6, 1 parameters are"):
        run(tiny("mae"), tmp_path / "weights")
    pretrainer = tiny("mae")
    images = torch.stack([Evaluate((8, 8), (0.3,), (0.4,))(open_images("digits")[row].image) for row in range(9)])
    watch = FeatureWatch(pretrainer.backbone, images)

    def overflow(number: int, _: Any) -> None:
        if number == 5:
            watch.images[2] = 1e38

    features = r"after step 6, the features of 1 of 9 images are NaN or infinite; its images are in .*bad-batch"
    with before_updates(overflow), pytest.raises(NotFinite, match=features):
        run(pretrainer, tmp_path / "features", looks=[watch])
    assert (tmp_path / "features" / BAD_BATCH).exists()


def test_two_checkpoints_are_kept_and_no_parts(tmp_path: Path) -> None:
    run(tiny("mae"), tmp_path, steps=17)
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step=15.ckpt", "step=17.ckpt"]
