"""`--start` from the command line: runs, probes and features from weights, and what is written down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from patchcast.cli import main
from patchcast.recipe import Recipe, Resolved
from patchcast.runs.network import open_network
from patchcast.runs.run import open_run, start_run
from patchcast.starts import downloads, load_start, read_start
from tests.peers import wake

ARGS = {"depth": 1}
OPTIONS = ("--data", "digits", "--batch_size", "16", "--no_pictures", "--workers", "0")
AT_THE_END = ("--eval_every", "1000", "--checkpoint_every", "1000")
"""Evaluated and saved once."""


def weights(folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A file of an RGB vision transformer with patches of 4 pixels, all of its weights unlike initial ones."""
    torch.manual_seed(1)
    vit = wake(timm.create_model("test_vit", **{"img_size": 16, "patch_size": 4, **ARGS, **changes})).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": vit.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth", vit


def pretrain(out: Path, *options: str, method: str = "mae", steps: int = 2) -> int:
    model = [] if "--model" in options else ["--model", "test_vit", "--model_args", json.dumps(ARGS)]
    words = [
        "pretrain",
        "--method",
        method,
        *model,
        *OPTIONS,
        *AT_THE_END,
        "--out",
        str(out),
        "--steps",
        str(steps),
        *options,
    ]
    return main(words)


def recipe(out: Path, **options: Any) -> Recipe:
    return Recipe("mae", "test_vit", "digits", out, **{"model_args": ARGS, "steps": 2, "batch_size": 16, **options})


def test_a_run_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, vit = weights(tmp_path / "theirs", img_size=32)
    run = start_run(recipe(tmp_path / "run", start=str(file)))
    assert run.recipe.patch_size == 4, "weights keep their patch"
    assert run.recipe.image_size == (32, 32), "and their image size: digits are enlarged"
    assert run.recipe.mean == (0.5,), "test_vit's, averaged"
    own, theirs = run.pretrainer.backbone.model.state_dict(), vit.state_dict()
    assert torch.equal(own["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    torch.testing.assert_close(own["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"].sum(1, keepdim=True))
    assert pretrain(tmp_path / "run", "--start", str(file), "--image_size", "28", "--probe_data", "none") == 0
    shown = capsys.readouterr().out
    assert "resampled  pos_embed (1, 65, 64) to (1, 50, 64)" in shown
    assert "left out   head (2 tensors)" in shown
    assert "new        predictor" in shown
    report = json.loads((tmp_path / "run" / "start.json").read_text())
    assert report["resampled"] == {"pos_embed": [[1, 65, 64], [1, 50, 64]]}
    assert Resolved.load(tmp_path / "run" / "config.yaml").start == str(file)


def test_a_trained_run_opens_without_its_start(tmp_path: Path) -> None:
    file, _ = weights(tmp_path / "theirs")
    assert pretrain(tmp_path / "run", "--start", str(file), "--probe_data", "none") == 0
    before = open_run(tmp_path / "run").untrained().state_dict()
    again = start_run(recipe(tmp_path / "other", start=str(file))).pretrainer.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.items())
    weights(tmp_path / "theirs", num_classes=3)
    state = torch.load(file)["model"]
    torch.save({name: value + 1 for name, value in state.items()}, file)
    with pytest.raises(ValueError, match="holds other weights than when the run"):
        open_run(tmp_path / "run").untrained()
    file.unlink()
    open_run(tmp_path / "run")
    with pytest.raises(ValueError, match="there is no file"):
        open_run(tmp_path / "run").untrained()


def test_a_run_resumes_without_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = weights(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    words = ("--start", "theirs/weights.pth", "--checkpoint_every", "2", "--probe_data", "none")
    assert pretrain(tmp_path / "whole", *words, steps=4) == 0
    assert pretrain(tmp_path / "run", *words, steps=4) == 0
    whole = load_file(tmp_path / "run" / "pretrainer.safetensors")
    for name in ("pretrainer.safetensors", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "checkpoints" / "step=4.ckpt").unlink()
    file.unlink()
    assert pretrain(tmp_path / "run", *words, steps=4) == 0
    resumed = load_file(tmp_path / "run" / "pretrainer.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_run_from_a_run_takes_encoder_and_decoder(first: Path, tmp_path: Path) -> None:
    theirs = open_run(first).pretrainer.state_dict()
    run = start_run(recipe(tmp_path / "second", start=str(first), model_args={}, seed=5))
    assert run.recipe.model_args == ARGS, "the start's"
    differing = [name for name, value in run.pretrainer.state_dict().items() if not torch.equal(value, theirs[name])]
    assert differing == ["backbone.model.head.weight"]
    assert run.fitted is not None
    assert run.fitted.new == []
    other = start_run(recipe(tmp_path / "third", start=str(first), method_args={"decoder_depth": 2}))
    assert other.fitted is not None
    assert all(name.startswith("predictor.") for name in other.fitted.new)


@pytest.mark.parametrize("sizes", [{"decoder_kernel": 3}, {"decoder_depth": 2, "decoder_width": 64}])
def test_a_run_from_a_run_has_a_decoder_of_its_sizes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """Whatever the sizes were, and not those that it would take from scratch."""
    assert pretrain(tmp_path / "first", "--method_args", json.dumps(sizes)) == 0
    second = start_run(recipe(tmp_path / "second", start=str(tmp_path / "first"), model_args={}))
    assert second.fitted is not None
    assert second.fitted.new == []
    assert second.recipe.method_args == Resolved.load(tmp_path / "first" / "config.yaml").method_args


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("data2vec", {"masks": 2, "momentum": 0.9, "decoder_width": 32, "decoder_depth": 1, "pixel_weight": 0.5}),
        ("simmim", {"head_kernel": 3, "head_width": 32, "head_depth": 1, "normalize": True}),
        ("nepa", {"head_depth": 1, "pixel_weight": 0.5}),
    ],
)
def test_a_run_from_a_run_predicts_the_same(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    assert pretrain(tmp_path / "first", "--method_args", json.dumps(options), method=method) == 0
    start = str(tmp_path / "first")
    second = start_run(Recipe(method, "test_vit", "digits", tmp_path / "second", start=start, steps=2))
    assert second.recipe.method_args == options
    assert second.fitted is not None
    assert second.fitted.new == []


def test_another_kind_of_decoder_has_sizes_of_its_own(tmp_path: Path) -> None:
    assert pretrain(tmp_path / "first", "--method_args", '{"decoder_kernel": 3, "decoder_width": 96}') == 0
    given: dict[str, Any] = {"start": str(tmp_path / "first"), "model_args": {}, "method_args": {"decoder_heads": 1}}
    assert start_run(recipe(tmp_path / "second", **given)).recipe.method_args == {
        "decoder_heads": 1, "decoder_width": 32, "decoder_depth": 1,
    }  # fmt: skip


@pytest.mark.parametrize("pixel_weight", [0.0, 0.5])
def test_ijepas_teacher_is_loaded_and_counts_from_zero(pixel_weight: float, tmp_path: Path) -> None:
    assert pretrain(tmp_path / "first", "--method_args", f'{{"pixel_weight": {pixel_weight}}}', method="ijepa") == 0
    first = open_run(tmp_path / "first").pretrainer.state_dict()
    run = start_run(
        Recipe("ijepa", "test_vit", "digits", tmp_path / "b", model_args=ARGS, start=str(tmp_path / "first"), steps=9)
    )
    state = run.pretrainer.state_dict()
    target = "target.targets.features" if pixel_weight else "target"
    teacher = f"{target}.teacher.model.blocks.0.attn.qkv.weight"
    assert torch.equal(state[teacher], first[teacher])
    assert not torch.equal(state[teacher], state[teacher.replace(f"{target}.teacher", "backbone")])
    assert (first[f"{target}.step"], state[f"{target}.step"]) == (2, 0)
    assert run.fitted is not None
    assert run.fitted.new == []


@pytest.fixture(scope="module")
def imagegpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of ImageGPT."""
    out = tmp_path_factory.mktemp("first") / "imagegpt"
    words = ("--model", "imagegpt", "--model_args", '{"depth": 1, "width": 16, "heads": 2}', "--codes", "8")
    assert pretrain(out, *words, method="imagegpt") == 0
    return out


def test_an_imagegpt_run_from_a_run_keeps_its_palette(imagegpt: Path, tmp_path: Path) -> None:
    first = open_run(imagegpt)
    run = start_run(Recipe("imagegpt", "imagegpt", "digits", tmp_path / "b", start=str(imagegpt), steps=2, seed=3))
    assert torch.equal(run.tokenizer.colors, first.tokenizer.colors)  # type: ignore[union-attr]
    theirs = first.pretrainer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.pretrainer.state_dict().items())


def test_transformers_imagegpt_is_a_start(imagegpt: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert main(["export", str(imagegpt), "--out", str(folder), "--to", "transformers"]) == 0
    run = start_run(Recipe("imagegpt", "imagegpt", "digits", tmp_path / "b", start=str(folder), steps=2, seed=3))
    theirs = open_run(imagegpt).pretrainer.state_dict()
    for name, value in run.pretrainer.state_dict().items():
        torch.testing.assert_close(value, theirs[name], msg=name)


def test_nothing_that_timm_loaded_is_initialized_again(tmp_path: Path) -> None:
    args = {**ARGS, "img_size": [8, 8], "patch_size": 2, "in_chans": 1}
    vit = wake(timm.create_model("test_vit", **args))
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    path = {"checkpoint_path": str(tmp_path / "weights.safetensors")}
    run = start_run(recipe(tmp_path / "run", patch_size=2, model_args={**ARGS, **path}))
    assert torch.equal(run.pretrainer.backbone.model.pos_embed, vit.pos_embed)


def test_what_contradicts_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = weights(tmp_path / "theirs", depth=2, embed_dim=32)
    for options, message in {
        ("--start", str(file), "--pretrained"): "both name weights to start from",
        ("--start_bands", "0", "1", "2"): "start_bands is for runs that start from weights",
        ("--start", str(file)): "1x1x32 there and 1x1x64 here",
        ("--start", "nowhere.pth"): "there is no file nowhere.pth",
    }.items():
        assert pretrain(tmp_path / "run", *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists(), "a refused command leaves nothing"


def test_probe_and_embed_take_the_same_words(tmp_path: Path) -> None:
    file, vit = weights(tmp_path / "theirs", in_chans=1, img_size=8)
    torch.manual_seed(0)
    named = f"test_vit={file}"
    with pytest.raises(ValueError, match="does not fit"):
        open_network(named)
    folder = tmp_path / "timm"
    timm.models.save_for_hf(
        vit, str(folder), safe_serialization=True, model_args={"img_size": 8, "patch_size": 4, "in_chans": 1, **ARGS}
    )
    network = open_network(f"local-dir:{folder}")
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network.backbone.model.eval().forward_features(images), vit.forward_features(images))
    assert not torch.equal(network.before().model.pos_embed, vit.pos_embed)
    out = tmp_path / "probe.json"
    words = ["probe", f"local-dir:{folder}", "--data", "digits", "--limit", "60", "--per_class", "2", "--draws", "2"]
    assert main([*words, "--out", str(out)]) == 0
    assert "pretrained" in json.loads(out.read_text())
    features = tmp_path / "features.safetensors"
    assert main(["embed", f"local-dir:{folder}", "--data", "digits", "--out", str(features)]) == 0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def head(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    session = huggingface_hub.utils.get_session()
    monkeypatch.setattr(session, "head", head)
    monkeypatch.setattr(downloads.huggingface_hub.utils, "get_session", lambda: session)
    return tmp_path / "hub"


def cached(hub: Path, repository: str, files: dict[str, Path]) -> None:
    """As if the hub's library had downloaded it."""
    place = hub / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    for name, file in files.items():
        shutil.copy(file, snapshot / name)


@pytest.mark.usefixtures("hub")
def test_without_a_network_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (("--pretrained",), ("--start", "test_vit.r160_in1k"), ("--start", "hf-hub:somebody/weights")):
        assert pretrain(tmp_path / "run", *options) == 2
        error = capsys.readouterr().err
        assert "does not answer" in error
        assert "hf download" in error
        assert "local-dir:FOLDER" in error
        assert error.count("\n") == 1
    assert constants.HF_HUB_OFFLINE is False, "as it was"


def test_the_hubs_cache_serves_without_a_network(hub: Path, tmp_path: Path) -> None:
    vit = wake(timm.create_model("test_vit")).eval()
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    cached(hub, "timm/test_vit.r160_in1k", {"model.safetensors": tmp_path / "weights.safetensors"})
    for options in ({"pretrained": True}, {"start": "test_vit"}, {"start": "test_vit.r160_in1k"}):
        run = start_run(recipe(tmp_path / "run", model_args={}, image_size=(160, 160), channels=3, **options))
        state = run.pretrainer.backbone.model.state_dict()
        differing = [name for name, value in vit.state_dict().items() if not torch.equal(value, state[name])]
        assert differing == ["head.weight", "head.bias"]
        assert run.recipe.mean == (0.5, 0.5, 0.5)
    timm.models.save_for_hf(vit, str(tmp_path / "folder"), safe_serialization=True)
    files = {name: tmp_path / "folder" / name for name in ("config.json", "model.safetensors")}
    cached(hub, "somebody/weights", files)
    started = load_start("hf-hub:somebody/weights")
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(started.backbone.model.eval().forward_features(images), vit.forward_features(images))
    assert read_start("hf-hub:somebody/weights").architecture == "test_vit"
