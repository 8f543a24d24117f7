"""Devices that share a batch learn what one learns: DDP and FSDP2 in real processes, and batches in pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from patchcast.cli import main
from patchcast.methods import METHODS
from patchcast.training.log import curve
from tests.forked import fork, fork_ranks

ROOT = Path(__file__).resolve().parents[2]
SMALL = '{"depth": 1, "embed_dim": 32, "num_heads": 2}'
FLAGS = {
    "ddp": ["--devices", "2"],
    "ddp, four": ["--devices", "4"],
    "fsdp2": ["--devices", "2", "--sharded", "true"],
    "fsdp2, in pieces": ["--devices", "2", "--sharded", "true", "--accumulate", "2"],
    "fsdp2, four": ["--devices", "4", "--sharded", "true"],
    "fsdp2, checkpointed": ["--devices", "2", "--sharded", "true", "--checkpointing", "true"],
    "ddp, checkpointed, in pieces": ["--devices", "2", "--checkpointing", "true", "--accumulate", "2"],
}
ADAMW = ["--optimizer", "adamw"]
"""Of a run that sharded ones are held to: some methods have Muon otherwise, which needs whole matrices."""


def command(method: str, out: Path, *flags: str) -> list[str]:
    network = ["imagegpt", "--model_args", '{"depth": 1, "width": 32, "heads": 2}', "--codes", "8"]
    model = network if method.startswith("imagegpt") else ["test_vit", "--model_args", SMALL]
    often = ["--steps", "6", "--batch_size", "16", "--log_every", "1", "--eval_every", "3", "--lr", "3e-3"]
    what = ["--method", method, "--model", *model, "--data", "digits", "--out", str(out), "--device", "cpu"]
    what += [] if method.startswith("imagegpt") else ["--mean", "0.3", "--std", "0.4"]
    what += ["--teacher", teacher(out.parent), "--teacher_size", "32"] if METHODS[method].teacher == "required" else []
    return ["pretrain", *what, *often, *flags]


def teacher(folder: Path) -> str:
    """A file of a convolutional network, the same weights in every folder."""
    file = folder / "teacher.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("test_resnet").state_dict(), file)
    return f"test_resnet={file}"


def ranks(arguments: list[str], world: int, out: Path) -> None:
    """Run a command on several ranks that are there already, as under torchrun."""
    printed = fork_ranks(lambda _: main(arguments), world, out.parent)
    assert sum(text.count("Done in ") for text in printed) == 1, "one process of them reports the result"


def processes(arguments: list[str]) -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-m", "tests.few", *arguments], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert told.returncode == 0, told.stderr[-3000:]
    assert told.stdout.count("Done in ") == 1, "one process of them tells how it went"


def launching(arguments: list[str], out: Path) -> None:
    """Run a command that starts its second process itself: the first is forked, as `python -m tests.few`, and only the
    second imports everything again."""

    def first() -> int:
        sys.argv = ["few", *arguments]
        sys.modules["__main__"].__spec__ = find_spec("tests.few")
        return main(arguments)

    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    code, printed = fork(first, out.with_suffix(".txt"), PYTHONPATH=path, OMP_NUM_THREADS="1").wait()
    assert code == 0, printed[-3000:]
    assert printed.count("Done in ") == 1, "one process of them tells how it went"


def assert_alike(alone: Path, together: Path) -> None:
    """Losses and weights to the rounding of sums in another order."""
    for metric in ("loss", "eval_loss", "feature_rank"):
        (steps, mine), (theirs_steps, theirs) = (curve(out / "metrics.csv", metric) for out in (alone, together))
        assert steps == theirs_steps
        assert mine == pytest.approx(theirs, rel=1e-4), metric
    one, two = (load_file(out / "pretrainer.safetensors") for out in (alone, together))
    assert one.keys() == two.keys()
    apart = torch.cat([((one[name] - two[name]).abs() > 1e-4).flatten() for name in one])
    # Adam divides by the size of gradients: where one is nothing but rounding (biases of keys), so is the step.
    assert apart.float().mean() < 0.02


@pytest.mark.parametrize("method", [pytest.param("mae", marks=pytest.mark.slow), "aim", "ijepa", "imagegpt"])
def test_a_batch_in_pieces(method: str, tmp_path: Path) -> None:
    """AIM's random prefixes weigh the pieces differently; their means must be weighed so, too."""
    assert main(command(method, tmp_path / "whole", "--no_pictures")) == 0
    assert main(command(method, tmp_path / "pieces", "--no_pictures", "--accumulate", "4")) == 0
    assert_alike(tmp_path / "whole", tmp_path / "pieces")


@pytest.mark.parametrize(("method", "how"), [("aim", "ddp"), ("ijepa", "fsdp2")])
def test_two_processes(method: str, how: str, tmp_path: Path) -> None:
    """Probes and pictures included, for which both look at the whole weights. The first command starts its second
    process itself."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(command(method, alone, "--probe_data", "digits")) == 0
    shared = command(method, together, "--probe_data", "digits", *FLAGS[how])
    if how == "ddp":
        launching(shared, together)
    else:
        ranks(shared, 2, together)
    assert_alike(alone, together)
    for metric in ("knn_accuracy", "linear_accuracy"):
        (steps, mine), (theirs_steps, theirs) = (curve(out / "metrics.csv", metric) for out in (alone, together))
        assert steps == theirs_steps == [3, 6]
        assert mine == pytest.approx(theirs, abs=0.02), "an image of 72 may lie on the border"
    pictures = [sorted(each.name for each in out.glob("images/*")) for out in (alone, together)]
    assert pictures[0] == pictures[1] == ([] if method == "ijepa" else ["step=3.png", "step=6.png"])


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of a method with these options that all others are held to, made once."""
    folder = tmp_path_factory.mktemp("alone")

    def out(method: str, *options: str) -> Path:
        run = folder / "".join([method, *options])
        if not run.exists():
            assert main(command(method, run, "--no_pictures", *options)) == 0
        return run

    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", FLAGS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_devices(method: str, how: str, one_process: Callable[..., Path], tmp_path: Path) -> None:
    world = 4 if "four" in how else 2
    ranks(command(method, tmp_path / "together", *FLAGS[how], "--no_pictures"), world, tmp_path / "together")
    assert_alike(one_process(method, *(ADAMW if "fsdp2" in how else [])), tmp_path / "together")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_sharded_in_bf16(method: str, tmp_path: Path) -> None:
    """Matrices are gathered in bf16, as autocast casts them on one device."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(command(method, alone, "--precision", "bf16", "--probe_data", "digits", *ADAMW)) == 0
    processes(command(method, together, "--precision", "bf16", "--probe_data", "digits", *FLAGS["fsdp2"]))
    for metric in ("loss", "eval_loss"):
        (steps, mine), (theirs_steps, theirs) = (curve(out / "metrics.csv", metric) for out in (alone, together))
        assert steps == theirs_steps
        assert mine == pytest.approx(theirs, rel=5e-3), metric


@pytest.mark.slow
def test_compiled_block_by_block(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(command("mae", alone, *ADAMW)) == 0
    processes(command("mae", together, "--compile", "true", *FLAGS["fsdp2"]))
    assert_alike(alone, together)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("mae", tmp_path / "run", "--devices", "3")) == 2
    assert "a batch of 16 images cannot be shared evenly by devices=3 x nodes=1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
