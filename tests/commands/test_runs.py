"""One run, opened once: what is held out, how often things are opened, and numbers out of their ranges."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.data import images as listing
from patchcast.data import source as sources
from patchcast.drawing.figures import Version, draw_versions
from patchcast.pretrainer import Pretrainer
from patchcast.ranges import Range
from patchcast.recipe import NOT_LEARNED, RANGES, Recipe, Resolved
from patchcast.runs import build as building
from patchcast.runs.network import Network
from patchcast.runs.run import open_run, start_run
from patchcast.runs.run_folder import located_data

pytestmark = pytest.mark.usefixtures("_no_figures")

MODEL = ["--model", "test_vit", "--model_args", '{"depth": 1, "embed_dim": 32, "num_heads": 2}']
MAE = ["pretrain", "--method", "mae", "--method_args", '{"decoder_width": 32, "decoder_depth": 1}', *MODEL]
SHORT = ["--steps", "2", "--batch_size", "8", "--workers", "0", "--eval_every", "2", "--checkpoint_every", "2"]


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def report_of(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("counts", "phrase"),
    [
        ({"train": 20, "val": 5, "test": 5}, "Not trained on: images of the val split"),
        ({"train": 20, "val": 5}, "Not trained on: images of the val split"),
        ({"": 30}, "Not trained on: images held out from training"),
    ],
)
def test_pictures_show_held_out_images(counts: dict[str, int], phrase: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = write_images(tmp_path / "images", counts)
    assert main([*MAE, *SHORT, "--data", str(data), "--out", str(run)]) == 0
    assert f"{phrase}: what was seen of each" in report_of(run)
    opened = open_run(run)
    trained, shown = (
        {images.store.path(int(place)) for place in images.positions}
        for images in (opened.source.train, opened.source.shown.images)
    )
    assert shown
    assert not trained & shown
    assert json.loads((run / "metrics.json").read_text())["eval_loss"] > 0


def test_the_same_folder_in_another_spelling_holds_out_the_same_images(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", {"a": 20, "b": 20})
    other = write_images(tmp_path / "other", {"a": 20})
    recipe = Recipe("mae", "test_vit", str(data), tmp_path / "run", image_size=(16, 16), patch_size=4)
    run = start_run(recipe)
    held_out = run.source.shown.images.positions.tolist()
    for spelling in (f"{data}/", f"{data}/../images"):
        assert run.shown(spelling).images.positions.tolist() == held_out
        assert Network("run", run.pretrainer.backbone, (16, 16), (0.5,), (0.5,), run).held_out_share(spelling) > 0
    assert run.open_data(str(other)).held_out is None
    assert not run.recipe.reads("digits")


def test_training_images_are_called_so(tmp_path: Path) -> None:
    run, data = tmp_path / "run", write_images(tmp_path / "images", {"": 30})
    assert main([*MAE, *SHORT, "--data", str(data), "--held_out", "0", "--out", str(run)]) == 0
    assert "Training images: what was seen of each" in report_of(run)
    assert json.loads((run / "metrics.json").read_text())["eval_loss"] is None


def test_configs_without_held_out_are_of_runs_that_held_out_nothing(tmp_path: Path) -> None:
    """Resumed in their folder or run again from their config, they train on every image, as they did."""
    data = write_images(tmp_path / "images", {"": 30})
    command = [*MAE, *SHORT, "--steps", "4", "--checkpoint_every", "2", "--data", str(data)]
    assert main([*command, "--held_out", "0", "--out", str(tmp_path / "before")]) == 0
    before = load_file(tmp_path / "before" / "pretrainer.safetensors")
    config = tmp_path / "before" / "config.yaml"
    lines = config.read_text().splitlines(True)
    config.write_text("".join(line for line in lines if not line.startswith("held_out:")))
    shutil.copytree(tmp_path / "before", tmp_path / "stopped")
    (tmp_path / "stopped" / "pretrainer.safetensors").unlink()
    (last,) = (tmp_path / "stopped" / "checkpoints").glob("step=4*")
    shutil.rmtree(last) if last.is_dir() else last.unlink()

    assert main([*command, "--out", str(tmp_path / "stopped")]) == 0
    again = ["pretrain", "--config", str(tmp_path / "before" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    for name in ("stopped", "again"):
        weights = load_file(tmp_path / name / "pretrainer.safetensors")
        assert all(torch.equal(weights[key], weight) for key, weight in before.items())
        assert len(open_run(tmp_path / name).source.train) == 30
    assert Resolved.load(tmp_path / "again" / "config.yaml").held_out == 0.0


@pytest.mark.parametrize(("options", "sources_opened"), [([], 1), (["--probe_data", "other"], 2)])
def test_a_run_opens_its_data_once_and_builds_its_model_twice(
    options: list[str], sources_opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return original(*args, **named)

        monkeypatch.setattr(module, name, counted)

    class Looked(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            counts["METHODS"] += 1
            return super().__getitem__(name)

    count(sources, "find_splits")
    count(listing, "find_splits")
    count(Pretrainer, "__init__")
    monkeypatch.setattr(building, "METHODS", Looked(building.METHODS))
    kinds = {f"{split}/{kind}": 12 for split in ("train", "val") for kind in "ab"}
    data = write_images(tmp_path / "images", kinds)
    write_images(tmp_path / "other", kinds)
    options = [str(tmp_path / word) if word == "other" else word for word in options]
    assert main([*MAE, *SHORT, *options, "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    assert counts["find_splits"] == sources_opened
    assert counts["__init__"] <= 2
    assert counts["METHODS"] <= 2


OUTSIDE = [
    ("lr", "0"), ("lr", "-1"), ("lr", "nan"), ("steps", "0"), ("epochs", "0"), ("warmup", "1"), ("warmup", "3"),
    ("weight_decay", "-1"), ("clip", "-1"), ("batch_size", "0"), ("log_every", "0"), ("eval_every", "0"),
    ("checkpoint_every", "0"), ("patch_size", "0"), ("tile_size", "0"), ("image_size", "0"), ("codes", "1"),
    ("workers", "-1"), ("devices", "0"), ("nodes", "0"), ("accumulate", "0"), ("channels", "0"), ("held_out", "1"),
    ("held_out", "-0.1"), ("seed", "-1"),
]  # fmt: skip
LISTS = [
    ("betas", "[0.9, 1.0]"), ("crop_scale", "[0, 1]"), ("crop_scale", "[0.2, 1.5]"), ("crop_scale", "[0.9, 0.2]"),
    ("std", "[0.0]"), ("mean", "[.inf]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OUTSIDE + LISTS)
def test_numbers_out_of_their_range_are_refused_and_leave_nothing(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if name == "steps" else ["--steps", "1"]
    command = ["pretrain", "--method", "mae", "--model", "test_vit", "--data", "digits", *given]
    assert main([*command, "--out", str(tmp_path / "new"), f"--{name}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert not (tmp_path / "new").exists()


def test_every_number_of_a_recipe_has_a_range() -> None:
    kinds = Recipe.__annotations__
    assert set(RANGES) == {name for name, kind in kinds.items() if re.search(r"\b(int|float|AskedBatch)\b", kind)}
    assert set(kinds) >= NOT_LEARNED


def test_ranges() -> None:
    for allowed, inside, outside in (
        (Range(0, 1, without_high=True), (0, 0.5), (1, -0.1, float("nan"), "0.5", True)),
        (Range(1), (1, 10**9), (0, float("inf"))),
    ):
        assert all(number in allowed for number in inside)
        assert not any(number in allowed for number in outside)


def test_numbers_of_other_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([*MAE, *SHORT, "--data", "digits", "--out", str(run)]) == 0
    before = sorted(run.rglob("*"))
    for command, wanted in (
        (["show", str(run), "--count", "0"], "--count must be at least 1; got 0"),
        (["sample", str(run), "--count", "0"], "--count must be at least 1; got 0"),
        (["complete", str(run), "--copies", "0"], "--copies must be at least 1; got 0"),
        (["complete", str(run), "--prefix", "-1"], "--prefix must be at least 0; got -1"),
        (["probe", str(run), "--limit", "-5"], "--limit must be at least 1; got -5"),
        (["probe", str(run), "--draws", "1"], "--draws must be at least 2; got 1"),
        (["probe", str(run), "--draws", "null"], "--draws takes a whole number; got 'null'"),
        (["probe", str(run), "--lidar", "1" + 30 * "0"], "--lidar must be at most 1,000; got 1000"),
        (["probe", str(run), "--per_class="], "--per_class needs a number"),
        (["show", str(run), "--seed", "-1"], "--seed must be at least 0"),
        (["embed", str(run), "--data", "digits", "--out", str(tmp_path / "a.parquet"), "--max_pixels", "0"], "got 0"),
        (["embed", str(run), "--data", "digits", "--out", str(tmp_path / "a.parquet"), "--batch_size", "0"], "got 0"),
        (["data", "check", "digits", "--limit", "0"], "--limit must be at least 1; got 0"),
    ):
        capsys.readouterr()
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert wanted in error
        assert error.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_a_yaml_recipe_may_say_numbers_as_people_do(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: mae\nmodel: test_vit\ndata: digits\nout: runs/a\nlr: 1e-3\nimage_size: 32\nepochs: 5\n")
    recipe = Recipe.load(file)
    assert (recipe.lr, recipe.image_size, recipe.epochs) == (1e-3, (32, 32), 5.0)
    for text, problem in (
        ("", "it has no options"),
        ("method: mae\n", "has no model, data, out"),
        ("a: [", "not a recipe in YAML"),
        ("method: mae\nmodel: m\ndata: d\nout: o\nlr: fast\n", "lr is a number; got 'fast'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(problem)):
            Recipe.load(file)


def test_names_are_escaped_in_cards_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source's name writes no headings, code or tags of its own."""
    monkeypatch.chdir(tmp_path)
    name = "a\n# heading\n```\nrm | <b>x"
    write_images(tmp_path / "images", {"": 12}).rename(tmp_path / name)
    run = tmp_path / "run"
    assert main([*MAE, *SHORT, "--data", name, "--out", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "card")]) == 0
    text = (tmp_path / "card" / "README.md").read_text()
    lines = text.splitlines()
    (shown,) = [line for line in lines if line.startswith("| data |")]
    assert shown == "| data | a \\# heading \\`\\`\\` rm \\| \\<b\\>x |"
    opening = next(place for place, line in enumerate(lines) if re.fullmatch("`{4,}bash", line))
    closing = lines.index(lines[opening].removesuffix("bash"), opening + 1)
    assert [place for place, line in enumerate(lines) if line == "# heading"] == [
        place for place, line in enumerate(lines) if line == "# heading" and opening < place < closing
    ]
    assert ModelCard(text).data.tags[-1] == "test_vit"
    assert "<b>x" not in report_of(run)


def test_a_run_is_opened_with_its_own_parts(tmp_path: Path) -> None:
    recipe = Recipe("mae", "test_vit", "digits", tmp_path / "run", steps=1, model_args={"depth": 1})
    run = start_run(recipe)
    assert not run.folder.exists(), "starting writes nothing"
    assert run.shown() == run.source.held_out
    assert run.recipe.held_out == 0.05
    weights, again = run.pretrainer.state_dict(), run.untrained().state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in again.items())


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_caption_fits_its_figure(count: int) -> None:
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    words = "images held out from training; normalized targets: the mean and contrast of each hidden patch are its own"
    figure = draw_versions({"image": Version(images), "seen": Version(images)}, caption=words)
    figure.canvas.draw()
    (text,) = [text for text in figure.texts if "held out" in text.get_text()]
    box, frame = text.get_window_extent(), figure.bbox
    assert frame.x0 <= box.x0
    assert box.x1 <= frame.x1
    assert text.get_text().split() == words.split()


def test_a_folder_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = tmp_path / "run", write_images(tmp_path / "images", {"": 12})
    assert main([*MAE, *SHORT, "--data", str(data), "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["show", str(run), str(data)]) == 2
    assert "is a folder; name image files" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*MAE, *SHORT, "--data", "digits", "--out", str(run)]) == 0
    return run


def test_a_relative_source_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started_in, elsewhere = tmp_path / "started", tmp_path / "elsewhere"
    write_images(started_in / "images", {"a": 6, "b": 6})
    write_images(elsewhere / "images", {"": 3})  # another source of the same name
    monkeypatch.chdir(started_in)
    assert main([*MAE, *SHORT, "--data", "images", "--out", "runs/first"]) == 0
    monkeypatch.chdir(elsewhere)
    opened = open_run(started_in / "runs" / "first")
    assert opened.recipe.reads(str(started_in / "images"))
    assert not opened.recipe.reads("images")
    assert len(opened.source.train) + len(opened.source.held_out.images) == 12


@pytest.mark.parametrize(("data", "out", "folder"), [
    ("images", "/abs/runs/first", "/abs/runs/first"), ("hf:images", "runs/first", "/a/runs/first"),
    ("/images", "runs/first", "/a/runs/first"), ("images", "runs/first", "/a/moved"), ("digits", "r", "/a/r"),
])  # fmt: skip
def test_other_sources_stay_as_they_are_called(data: str, out: str, folder: str) -> None:
    assert located_data(Recipe("mae", "test_vit", data, Path(out)), Path(folder)) == data


def test_a_source_to_probe_has_the_columns_of_the_data(tmp_path: Path) -> None:
    from tests.data.test_sources import write

    names = {"image_column": "left", "label_column": "breed"}
    for place, labels in (("a", [0, 1] * 3), ("b", [1, 0] * 3)):
        columns = {"right": [b""] * 6, "breed": labels, "age": labels, "target": [0] * 6}
        write(tmp_path / f"{place}.parquet", "left", rows=6, is_struct=False, **columns)
    write(tmp_path / "c.parquet", "image", rows=6, label=[1, 0] * 3)
    recipe = Recipe("mae", "test_vit", str(tmp_path / "a.parquet"), tmp_path / "run", steps=1, **names)
    run = start_run(recipe)
    assert run.open_data(str(tmp_path / "b.parquet")).train.labels.tolist() == [1, 0] * 3
    assert run.open_data(str(tmp_path / "c.parquet")).train.labels.tolist() == [1, 0] * 3


WRITTEN_LAST = ("pretrainer.safetensors", "model.safetensors", "config.json", "reconstructions.png", "loss.png")
"""In their order; metrics.json follows."""


ENDS = (0, 3, len(WRITTEN_LAST))


@pytest.mark.parametrize(
    "left", [pytest.param(n, marks=[] if n in ENDS else pytest.mark.slow) for n in range(len(WRITTEN_LAST) + 1)]
)
def test_a_run_killed_while_it_finishes_is_finished_by_the_same_command(
    left: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    for name in (*WRITTEN_LAST[left:], "metrics.json"):
        (run / name).unlink()
    config = (run / "config.yaml").read_text().replace(str(finished), str(run))
    (run / "config.yaml").write_text(config)
    assert main([*MAE, *SHORT, "--data", "digits", "--out", str(run)]) == 0
    for name in (*WRITTEN_LAST[:3], "metrics.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    capsys.readouterr()
    assert main([*MAE, *SHORT, "--data", "digits", "--out", str(run)]) == 2
    assert "finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "../x"),
        ("model", 3),
        ("model_args", {"pretrained_cfg": {"file": "/etc/passwd"}}),
        ("model_args", {"checkpoint_path": "evil.pth"}),
        ("model_args", ["a"]),
        ("image_size", [8]),
        ("patch_size", "two"),
        ("method_args", {"decoder_depth": "two"}),
    ],
)
@pytest.mark.parametrize("command", ["show", "report"])
def test_a_hostile_config_gets_one_sentence(
    command: str, name: str, value: object, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    values = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**values, name: value}))
    assert main([command, str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("patchcast: ")
    assert len(said.splitlines()) == 1


def test_folders_in_place_of_files_get_one_sentence(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").mkdir()
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_hostile_names_reach_no_terminal_page_or_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape codes and marks of direction are written out; markup of rich and formulas of matplotlib are not read."""
    monkeypatch.chdir(tmp_path)
    name = "\x1b[31m $a_b$ $^$ \u202e[/x]"
    write_images(tmp_path / "images", {"a": 6, "b": 6})
    (tmp_path / "images").rename(name.replace("/", "\u2215"))
    run = tmp_path / "run [final]"
    source = name.replace("/", "\u2215")
    assert main([*MAE, *SHORT, "--data", source, "--out", str(run)]) == 0
    for command in (["probe", str(run), "--draws", "2", "--per_class", "1"], ["report", str(run)], ["show", str(run)]):
        assert main(command) == 0
    assert main(["export", str(run), "--out", "card"]) == 0
    printed = capsys.readouterr()
    assert "run [final]" in " ".join(printed.out.split())
    texts = [printed.out, printed.err, (run / "report.html").read_text(), Path("card/README.md").read_text()]
    assert not any("\x1b[31m" in text or "\u202e" in text for text in texts)


DAMAGED = [
    ("config.yaml", lambda text: text.replace("steps: 2", "steps: abc"), "steps has another kind of value"),
    ("config.yaml", lambda text: text.replace("steps: 2", "steps: .nan"), "steps has another kind of value"),
    ("config.yaml", lambda text: re.sub("^lr: .*", "lr: null", text, flags=re.M), "lr has another kind of value"),
    ("config.yaml", lambda text: text.replace("depth: 1", "depth: 90000"), "more than 1,000 blocks is not built"),
    ("config.yaml", lambda text: "", "put back the file that the run wrote, or choose another"),
    ("metrics.json", lambda text: text[:9], "metrics.json is damaged"),
    ("probe.json", lambda text: "{", "probe.json is damaged"),
    ("pretrainer.safetensors", lambda text: "x", "remove it, and the run's own pretrain command writes it again"),
    ("metrics.csv", lambda text: text.replace("\n2,", "\n2,abc,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,"), ""),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(DAMAGED)))
def test_a_damaged_run_is_one_sentence_with_the_way_out(
    case: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage, wanted = DAMAGED[case]
    run = shutil.copytree(finished, tmp_path / "run")
    config = (run / "config.yaml").read_text().replace(str(finished), str(run))
    (run / "config.yaml").write_text(config)
    text = (run / name).read_text(errors="replace") if (run / name).exists() else ""
    (run / name).write_text(damage(text))
    resume = [*MAE, *SHORT, "--data", "digits", "--out", str(run)]
    command = resume if "put back" in wanted or not wanted else ["report", str(run)]
    if not wanted:
        (run / "metrics.json").unlink()
    assert main(command) == (2 if wanted else 0)
    error = capsys.readouterr().err
    assert wanted in error
    assert error.count("\n") == 1 or not wanted
