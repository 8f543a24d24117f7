"""Probes and pictures during a run: what they tell, and that a run with them is the run without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset

from patchcast.backbones.capabilities import DEFAULT_READOUT
from patchcast.cli import main
from patchcast.data import EvalSet, Evaluate, open_images
from patchcast.drawing.sheets import label_width
from patchcast.drawing.versions import NEW
from patchcast.evaluation import extract, knn_accuracy, ridge_accuracy
from patchcast.evaluation.labeled import open_labeled
from patchcast.methods import on_codes
from patchcast.recipe import Recipe
from patchcast.runs.run import open_run, start_run
from patchcast.training.log import Log, TensorBoard, curve, read_metrics
from patchcast.training.looks import Pictures, embedding_on
from patchcast.training.probing import OnlineProbe
from tests.imagegpt.parts import causal
from tests.training.test_run import before_updates, killed_at, run, tiny

EVALUATE = Evaluate((8, 8), (0.3,), (0.4,))


def digits(split: str, count: int) -> Dataset[Any]:
    return torch.utils.data.Subset(EvalSet(open_images("digits", split=split), EVALUATE), range(count))


def probe(pretrainer: Any) -> OnlineProbe:
    return OnlineProbe(pretrainer.backbone, digits("train", 90), digits("test", 50), batch_size=32)


def draw(_: torch.device) -> Image.Image:
    torch.rand(3)
    return Image.new("L", (8, 8))


def test_codes_are_made_where_the_network_is() -> None:
    """Training on codes moves the network to its device, and not the palette that looks need."""
    pretrainer = causal()
    palette = pretrainer.backbone.tokenizer
    palette.encode(torch.zeros(1, palette.channels, 4, 4))  # makes its table, which needs values
    on_codes(pretrainer).to("meta")
    images = torch.zeros(2, palette.channels, *pretrainer.backbone.image_size)
    assert embedding_on(torch.device("meta"), pretrainer.backbone, images, DEFAULT_READOUT).is_meta


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Neither weights, nor chance, nor modes."""
    alone, watched = tiny("mae"), tiny("mae")
    chance: dict[str, list[torch.Tensor]] = {"alone": [], "watched": []}
    modes: dict[str, list[list[bool]]] = {"alone": [], "watched": []}
    looks = {"alone": [], "watched": [probe(watched), Pictures(draw, tmp_path / "images")]}
    for name, pretrainer in {"alone": alone, "watched": watched}.items():

        def note(*_: Any, name: str = name, pretrainer: Any = pretrainer) -> None:
            chance[name].append(torch.get_rng_state())
            modes[name].append([module.training for module in pretrainer.modules()])

        with before_updates(note):
            run(pretrainer, tmp_path / name, eval_every=3, looks=looks[name])
    for one, two in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)
    assert len(chance["alone"]) == len(chance["watched"]) == 12
    assert all(torch.equal(one, two) for one, two in zip(chance["alone"], chance["watched"], strict=True))
    assert modes["alone"] == modes["watched"]
    assert modes["alone"][0].count(True) > 10
    assert sorted(each.name for each in (tmp_path / "images").iterdir()) == [
        "step=12.png", "step=3.png", "step=6.png", "step=9.png",
    ]  # fmt: skip


def test_the_features_are_those_of_probes(tmp_path: Path) -> None:
    pretrainer = tiny("aim")
    online = probe(pretrainer)
    mine = online.features(online.fitted, torch.device("cpu"))
    batches = torch.utils.data.DataLoader(online.fitted, batch_size=32)
    theirs = extract(pretrainer.backbone, batches)
    assert torch.equal(mine.x, theirs.x)
    assert torch.equal(mine.labels, theirs.labels)


def test_a_run_that_goes_on_logs_what_it_would_have(tmp_path: Path) -> None:
    whole, broken, resumed = tiny("aim"), tiny("aim"), tiny("aim")
    run(whole, tmp_path / "whole", eval_every=3, looks=[probe(whole)])
    with killed_at(7):
        run(broken, tmp_path / "broken", eval_every=3, looks=[probe(broken)])
    run(resumed, tmp_path / "broken", eval_every=3, looks=[probe(resumed)])
    for metric in ("knn_accuracy", "linear_accuracy"):
        steps, values = curve(tmp_path / "whole" / "metrics.csv", metric)
        assert (steps, values) == curve(tmp_path / "broken" / "metrics.csv", metric)
        assert steps == [3, 6, 9, 12]
        assert all(0.1 < value < 1 for value in values), "better than chance, on digits"


TINY = [
    "pretrain", "--data", "digits", "--steps", "6", "--batch_size", "16", "--eval_every", "3", "--log_every", "1",
]  # fmt: skip
SMALL = '{"depth": 1, "embed_dim": 32, "num_heads": 2}'
MODELS = {
    "mae": ["--model", "test_vit", "--model_args", SMALL, "--method_args", '{"decoder_width": 32, "decoder_depth": 1}'],
    "imagegpt": ["--model", "imagegpt", "--model_args", '{"depth": 1, "width": 32, "heads": 2}', "--codes", "8"],
}


ROWS = {"mae": ["image", "seen", "blind", "predicted"], "imagegpt": ["image", "given", "drawn", "again", NEW]}
"""The rows of a picture during a run."""


@pytest.mark.parametrize("method", MODELS)
def test_from_the_command_line(method: str, tmp_path: Path) -> None:
    """The last row has the accuracies of the weights that are saved, and these are those of a run unwatched."""
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    command = [*TINY, "--method", method, *MODELS[method]]
    assert main([*command, "--out", str(watched), "--probe_data", "digits", "--tensorboard", "true"]) == 0
    assert main([*command, "--out", str(alone), "--pictures", "false"]) == 0
    assert not (alone / "images").exists()
    one, two = (load_file(out / "pretrainer.safetensors") for out in (watched, alone))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())

    rows = read_metrics(watched / "metrics.csv")
    assert [row["knn_accuracy"] != "" for row in rows] == [False, False, True] * 2
    opened = open_run(watched)
    loaders = open_labeled("digits", channels=1).loaders(opened.evaluation)
    fitted, judged = (extract(opened.pretrainer.backbone, loader) for loader in loaders)
    # Sums of the two are over batches of another size.
    assert float(rows[-1]["knn_accuracy"]) == pytest.approx(knn_accuracy(fitted, judged, k=(20,))[20], abs=0.01)
    assert float(rows[-1]["linear_accuracy"]) == pytest.approx(ridge_accuracy(fitted, judged), abs=0.01)

    with Image.open(watched / "images" / "step=6.png") as last, Image.open(watched / "images" / "step=3.png") as first:
        names = ROWS[method]
        assert last.size == (label_width(names) + 8 * 65 - 1, len(names) * 65 - 1)
        later, earlier = np.asarray(last), np.asarray(first)
    assert (later != earlier).any(), "the same images by other weights"
    assert (later[:64] == earlier[:64]).all(), "the same images"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched / "tensorboard")).Reload()
    assert [each.step for each in events.Images("pictures")] == [3, 6]
    assert [each.step for each in events.Scalars("knn_accuracy")] == [3, 6]


def test_tensorboard_forgets_what_a_killed_run_logged_after_its_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 4), (3, 5)):  # killed after step 4; the checkpoint is of step 2
        logger = TensorBoard(tmp_path)
        log = Log(tmp_path / "metrics.csv", [logger])
        if first > 1:
            log.resume(first - 1)
        for step in range(first, last + 1):
            log.add(step, {"loss": float(first)})
        logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 3.0)]


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its offline mode: numbers and pictures arrive, and a run that goes on is the same run there."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    command = [*TINY, "--method", "mae", *MODELS["mae"], "--out", str(out), "--wandb", "trials"]
    assert main([*command, "--checkpoint_every", "3"]) == 0
    (folder,) = out.glob("wandb/offline-run-*")
    assert len(list((folder / "files" / "media" / "images").glob("pictures_*.png"))) == 2

    (out / "pretrainer.safetensors").unlink()
    (out / "checkpoints" / "step=6.ckpt").unlink()
    assert main(command) == 0
    numbers = {each.name.rpartition("-")[2] for each in out.glob("wandb/offline-run-*")}
    assert len(numbers) == 1


def test_what_cannot_be_watched_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for name in "ab":
        Image.new("L", (8, 8)).save(photos / f"{name}.png")
    command = [*TINY, "--method", "mae", *MODELS["mae"], "--out", str(out)]
    assert main([*command, "--probe_data", str(photos)]) == 2
    assert "has no labels, which a probe needs" in capsys.readouterr().err
    monkeypatch.setattr("patchcast.training.log.find_spec", lambda package: None)
    assert main([*command, "--wandb", "trials"]) == 2
    assert "--wandb needs a package that is not installed: pip install 'patchcast[wandb]'" in capsys.readouterr().err
    assert not out.exists()


def test_configs_without_a_readout_are_of_runs_that_probed_the_mean(tmp_path: Path) -> None:
    new = Recipe("mae", "test_vit", "digits", tmp_path / "run", steps=2, model_args={"depth": 1})
    assert start_run(new).recipe.readout == DEFAULT_READOUT
    now = start_run(new).recipe
    now.out.mkdir()
    (now.out / "config.yaml").write_text(
        "".join(line for line in yaml.safe_dump(now.to_dict()).splitlines(True) if not line.startswith("readout"))
    )
    assert start_run(new).recipe.readout == "mean"
    assert start_run(dataclasses.replace(new, readout="class")).recipe.readout == "class"
