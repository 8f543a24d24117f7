"""A run that starts from weights goes on safely; resuming, starting and overwriting are three things."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from patchcast.backbones import wrap
from patchcast.cli import main
from patchcast.methods import mae
from patchcast.recipe import Resolved
from patchcast.runs.run import open_run, start_run
from patchcast.starts import load_start
from patchcast.training import loop
from patchcast.training.average import Average
from patchcast.training.optimization import Optimization, freeze_blocks, layer_numbers, make_optimizer
from patchcast.training.probing import BelowStartWarning, fallen
from patchcast.training.sharding import whole
from tests.starts.conftest import copied
from tests.starts.test_started_runs import ARGS, AT_THE_END, OPTIONS, pretrain, recipe, weights


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_started_run_has_defaults_of_its_own(first: Path, tmp_path: Path) -> None:
    file, _ = weights(tmp_path / "theirs")
    fresh = start_run(recipe(tmp_path / "fresh", steps=20)).recipe
    assert (fresh.layer_decay, fresh.freeze_first, fresh.ema) == (1.0, 0, 0.0)
    started = start_run(recipe(tmp_path / "started", start=str(file), steps=20)).recipe
    assert started.lr == fresh.lr / 4
    assert (started.layer_decay, started.freeze_first, started.ema) == (0.75, 2, 0.999)
    same = start_run(recipe(tmp_path / "same", start=str(first), model_args={}, steps=20)).recipe
    assert same.freeze_first == 0, "its decoder came along"
    with pytest.raises(ValueError, match="freeze_first=20 freezes the backbone in all 20 steps"):
        start_run(recipe(tmp_path / "never", start=str(file), steps=20, freeze_first=20))


def test_rates_of_blocks_and_of_a_frozen_backbone() -> None:
    pretrainer = mae(wrap("test_vit", img_size=32, depth=2), decoder_width=16, decoder_depth=1)
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    settings = Optimization(1.0, layer_decay=0.5, freeze_first=3, warmup=0.0)
    groups = make_optimizer(pretrainer, settings).param_groups
    of = {parameter: group for group in groups for parameter in group["params"]}
    model = pretrainer.backbone.model
    last, first, stem = model.blocks[1].attn.qkv.weight, model.blocks[0].attn.qkv.weight, model.patch_embed.proj.weight
    decoder = pretrainer.predictor.embed.weight
    assert [settings.rate(3, 9, of[each]) for each in (model.norm.weight, last, first, stem)] == [1.0, 1.0, 0.5, 0.25]
    assert settings.rate(2, 9, of[last]) == 0.0
    assert settings.rate(2, 9, of[decoder]) > 0.0
    assert sum(len(group["params"]) for group in groups) == sum(each.requires_grad for each in pretrainer.parameters())
    freeze_blocks(pretrainer.backbone, 1)
    assert (stem.requires_grad, first.requires_grad, last.requires_grad) == (False, False, True)
    with pytest.raises(ValueError, match="leaves one block at least to train; VisionTransformer has 2, got 2"):
        freeze_blocks(pretrainer.backbone, 2)


def test_layers_of_tiles_and_of_imagegpt_are_known() -> None:
    from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
    from patchcast.backbones.tiled import Tiled
    from patchcast.geometry import Grid
    from patchcast.tokenizers.palette import Palette

    tiled = Tiled(wrap("test_vit", img_size=32, depth=2), Grid(2, 2))
    assert max(layer_numbers(tiled).values()) == 2
    network = ImageGPT(Grid(2, 2), 2, depth=3, width=8, heads=2)
    imagegpt = ImageGPTBackbone(network, Palette(torch.tensor([[-1.0], [1.0]])), channels=1)
    assert sorted({*layer_numbers(imagegpt).values()}) == [0, 1, 2, 3]


def test_the_backbone_waits_and_frozen_blocks_stay(tmp_path: Path) -> None:
    file, _ = weights(tmp_path / "theirs", depth=2)
    words = ("--start", str(file), "--model", "test_vit", "--model_args", '{"depth": 2}', "--ema", "0")
    words = (*words, "--probe_data", "none")
    before = start_run(recipe(tmp_path / "run", start=str(file), model_args={"depth": 2})).pretrainer.state_dict()
    assert pretrain(tmp_path / "a", *words, "--freeze_first", "2", "--checkpoint_every", "1", steps=3) == 0
    waited = torch.load(tmp_path / "a" / "checkpoints" / "step=2.ckpt", weights_only=True)["state_dict"]
    for name, value in before.items():
        if name.startswith("backbone."):
            assert torch.equal(value, waited[f"pretrainer.{name}"]), name
    assert not torch.equal(before["predictor.embed.weight"], waited["pretrainer.predictor.embed.weight"])
    after = open_run(tmp_path / "a").pretrainer.state_dict()
    assert not torch.equal(
        before["backbone.model.patch_embed.proj.weight"], after["backbone.model.patch_embed.proj.weight"]
    )
    assert pretrain(tmp_path / "b", *words, "--freeze_first", "0", "--freeze_blocks", "1") == 0
    after = open_run(tmp_path / "b").pretrainer.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    frozen = ("backbone.model.blocks.0.", "backbone.model.pos_embed", "backbone.model.patch_embed")
    assert not {name for name in changed if name.startswith(frozen)}
    assert "backbone.model.blocks.1.attn.qkv.weight" in changed


def test_an_average_is_what_the_formula_says() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    average, expected = Average(layer, 0.5), float(layer.weight.detach())
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight.add_(1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(layer.weight.detach())
    own = layer.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(float(layer.weight.detach()), expected)
    assert torch.equal(layer.weight, own)


def test_a_sharded_average_is_the_same(tmp_path: Path) -> None:
    """As FSDP2 shards it, here over one process."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = torch.nn.Linear(3, 5)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        sharded = torch.nn.Linear(3, 5)
        sharded.load_state_dict(plain.state_dict())
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        averages = [Average(module, 0.9) for module in (plain, sharded)]
        for step in range(1, 4):
            for module, average in zip((plain, sharded), averages, strict=True):
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.mul_(1.5)
                average.update(step)
        first, second = (average.state_dict() for average in averages)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, whole(second[name])) for name, value in first.items())
        averages[1].load_state_dict(second)
        with averages[1].applied():
            assert torch.equal(sharded.weight.full_tensor(), first["weight"])  # type: ignore[operator]
    finally:
        dist.destroy_process_group()


def test_the_better_weights_are_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = weights(tmp_path / "theirs")
    for name, lr in (("wild", "0.3"), ("calm", "1e-9")):
        words = ("--start", str(file), "--freeze_first", "0", "--warmup", "0", "--lr", lr, "--clip", "0")
        words = (*words, "--probe_data", "none")
        assert pretrain(tmp_path / name, *words, steps=4) == 0
        numbers = json.loads((tmp_path / name / "metrics.json").read_text())
        last = rows(tmp_path / name)[-1]
        assert numbers["ema_eval_loss"] == float(last["ema_eval_loss"])
        better = "averaged" if float(last["ema_eval_loss"]) < float(last["eval_loss"]) else "last"
        assert numbers["saved_weights"] == better
        assert f"The {better} weights are saved" in capsys.readouterr().out
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "step=4.ckpt", weights_only=True)
        state = checkpoint["average"] if better == "averaged" else checkpoint["state_dict"]
        saved = load_file(tmp_path / name / "pretrainer.safetensors")
        key = "backbone.model.blocks.0.attn.qkv.weight"
        assert torch.equal(saved[key], state[f"pretrainer.{key}"])


def test_row_0_is_the_start_and_a_fall_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "test_vit", "--model_args", '{"depth": 1}', "--lr", "3e-3", "--batch_size", "64")
    assert pretrain(tmp_path / "first", *words, "--probe_data", "none", steps=30) == 0
    start = ("--start", str(tmp_path / "first"), "--eval_every", "1", "--warmup", "0", "--freeze_first", "0")
    with pytest.warns(BelowStartWarning, match=r"step \d: below the weights that the run started from: .*at the start"):
        assert pretrain(tmp_path / "run", *start, "--lr", "5.0", "--layer_decay", "1", "--clip", "0", steps=3) == 0
    found = rows(tmp_path / "run")
    assert found[0]["step"] == "0"
    assert found[0]["loss"] == ""
    assert float(found[0]["knn_accuracy"]) > float(found[-1]["knn_accuracy"])
    shown = capsys.readouterr().out
    percent = f"{100 * float(found[0]['linear_accuracy']):.1f} %"
    assert f"(start: {percent})" in " ".join(shown.split())
    assert "before the first step, " in shown
    probes = json.loads((tmp_path / "run" / "metrics.json").read_text())["probes"]
    assert probes["linear_accuracy"]["start"] == float(found[0]["linear_accuracy"])
    assert main(["report", str(tmp_path / "run")]) == 0
    assert f"{percent} with the weights that it started from" in (tmp_path / "run" / "report.html").read_text()
    assert pretrain(tmp_path / "off", "--start", str(tmp_path / "first"), "--probe_data", "none") == 0
    assert not any(row["knn_accuracy"] for row in rows(tmp_path / "off"))


def test_what_may_be_chance_is_not_warned_of() -> None:
    assert fallen({"knn_accuracy": 0.80}, {"knn_accuracy": 0.76}, 500) == ""
    assert "nearest neighbors 70.0 % (80.0 % at the start)" in fallen({"knn_accuracy": 0.8}, {"knn_accuracy": 0.7}, 500)
    assert fallen({}, {"knn_accuracy": 0.0}, 500) == ""


def test_a_run_is_continued_with_more_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = weights(tmp_path / "theirs")
    every = ("--checkpoint_every", "2", "--eval_every", "2", "--start", str(file), "--probe_data", "none")
    assert pretrain(tmp_path / "whole", *every, steps=4) == 0
    finished = load_file(tmp_path / "whole" / "pretrainer.safetensors")
    run = copied(tmp_path / "whole", tmp_path / "stopped")
    assert main(["pretrain", "--out", str(tmp_path / "whole"), "--steps", "8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "after step 4, to 8 instead of 4: the learning rate is from here on that of a run of 8 steps" in shown
    assert pretrain(run, *every, steps=8) == 0, "the whole command does the same"
    for gone in ("pretrainer.safetensors", "metrics.json", "checkpoints/step=8.ckpt"):
        (run / gone).unlink()
    file.unlink()
    assert main(["pretrain", "--out", str(run)]) == 0
    whole, stopped = (load_file(tmp_path / name / "pretrainer.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert any(not torch.equal(value, finished[name]) for name, value in whole.items())
    assert [row["step"] for row in rows(tmp_path / "whole") if row["eval_loss"]] == ["2", "4", "6", "8"]
    config = Resolved.load(tmp_path / "whole" / "config.yaml")
    assert (config.steps, config.freeze_first) == (8, 0)


def test_more_epochs_continue_a_run(first: Path, tmp_path: Path) -> None:
    run = copied(first, tmp_path / "run")
    assert main(["pretrain", "--out", str(run), "--epochs", "0.3"]) == 0
    assert Resolved.load(run / "config.yaml").steps == round(0.3 * 288 / 16)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", "1"), "give more with --steps to continue it (got 1)"),
        ((), "--steps MORE continues it, --start"),
        (("--seed", "7"), "holds another run (seed is 0 there and 7 here); choose another --out, or give --overwrite"),
    ],
)
def test_a_finished_run_is_left_alone(
    words: tuple[str, ...], sentence: str, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--out", str(first), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_resume_start_and_overwrite_are_three_things(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(first, tmp_path / "run")
    before = (run / "pretrainer.safetensors").read_bytes()
    (run / "notes.txt").write_text("mine")
    assert pretrain(run, "--start", str(run)) == 2
    assert "--start begins a new run from the weights in" in capsys.readouterr().err
    assert pretrain(run, "--overwrite", "--start", str(run)) == 2
    assert "which --overwrite would throw away" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    assert pretrain(tmp_path / "photos", "--overwrite") == 2
    assert "--overwrite throws away runs only" in capsys.readouterr().err
    assert (tmp_path / "photos" / "mine.txt").exists()
    assert pretrain(run, "--overwrite", "--model", "test_vit", "--method_args", '{"mask_ratio": 1.5}') == 2
    assert (run / "pretrainer.safetensors").read_bytes() == before, "a refused command leaves the run"
    assert pretrain(run, "--overwrite", "--seed", "3") == 0
    assert not (run / "notes.txt").exists()
    config = Resolved.load(run / "config.yaml")
    assert (config.seed, config.overwrite) == (3, False)
    assert pretrain(tmp_path / "new", "--overwrite") == 0, "nothing to throw away"


def test_overwrite_typed_again_resumes_what_it_began(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(first, tmp_path / "run")
    every = ("--checkpoint_every", "2", "--overwrite")
    shape = loop.warmup_cosine

    def stopping(step: int, **how: Any) -> float:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return shape(step, **how)

    monkeypatch.setattr(loop, "warmup_cosine", stopping)
    assert pretrain(run, *every, steps=6) == 143
    assert "the same command resumes there" in capsys.readouterr().err
    monkeypatch.undo()
    (run / "notes.txt").write_text("mine")
    assert pretrain(run, *every, steps=6) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "was begun by this command and has not finished: nothing is thrown away" in shown
    assert "Resuming the run in" in shown
    assert (run / "notes.txt").exists()
    assert pretrain(run, *every, steps=6) == 0, "it is finished, and thrown away"
    assert not (run / "notes.txt").exists()
    (run / "metrics.json").unlink()
    (run / "notes.txt").write_text("mine")
    assert pretrain(run, *every, "--seed", "4", steps=6) == 0, "another command"
    assert not (run / "notes.txt").exists()


def test_the_model_follows_from_the_weights(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--method", "simmim", *OPTIONS, *AT_THE_END, "--steps", "2"]
    assert main([*words, "--start", str(first), "--out", str(tmp_path / "run")]) == 0
    config = Resolved.load(tmp_path / "run" / "config.yaml")
    assert (config.model, config.model_args) == ("test_vit", ARGS)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "strange.pth")
    for start, sentence in {(): "needs --model", ("--start", str(tmp_path / "strange.pth")): "names its model"}.items():
        assert main([*words, *start, "--out", str(tmp_path / "none")]) == 2
        assert sentence in capsys.readouterr().err


def test_networks_that_only_paint_start_from_weights_too(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    started = load_start(f"test_efficientnet={tmp_path / 'weights.pth'}")
    theirs = model.state_dict()
    own = started.backbone.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items() if not name.startswith("classifier"))
