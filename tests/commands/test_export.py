"""What `patchcast export` writes and `push` uploads: every format gives the run's own features, by its card's code."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from patchcast.backbones import wrap
from patchcast.cli import main
from patchcast.commands import push as pushing
from patchcast.data.decode import decode
from patchcast.folder_files import CONFIG
from patchcast.interop.card import command, loading
from patchcast.interop.export_formats import trial_images
from patchcast.interop.graph import save_torch
from patchcast.recipe import NOT_LEARNED, Recipe, Resolved
from patchcast.runs.build import build, find_method
from patchcast.runs.run import open_run
from patchcast.runs.run_folder import save_weights
from patchcast.tokenizers.palette import Palette
from tests.backbones.zoo import small

SMALL = {
    "mae": {"method_args": {"decoder_width": 32, "decoder_depth": 1}},
    "simmim": {},
    "imagegpt": {"model": "imagegpt", "model_args": {"depth": 1, "width": 16, "heads": 2}, "codes": 16},
}


def a_run(folder: Path, method: str = "mae", **given: Any) -> Path:
    """A run as training leaves it, but that nothing was learned in it."""
    known: dict[str, Any] = {
        "model": "test_vit", "data": "digits", "out": folder, "image_size": (8, 8), "channels": 1, "mean": (0.31,),
        "std": (0.38,), "crop_scale": (0.2, 1.0), "flip": False, "epochs": 1.0, "steps": 4, "lr": 1e-3,
        "betas": (0.9, 0.95), "weight_decay": 0.05, "clip": 0.0, "precision": "fp32", "workers": 0, "eval_every": 1,
        "checkpoint_every": 1, "model_args": {"depth": 1}, "patch_size": 2,
    }  # fmt: skip
    if method == "imagegpt":
        known |= {"patch_size": None, "mean": (0.5,), "std": (0.5,)}
    recipe = Resolved(method, **{**known, **SMALL[method], **given})
    folder.mkdir(parents=True)
    recipe.save(folder / CONFIG)
    tokenizer = None
    if method == "imagegpt":
        tokenizer = Palette(torch.linspace(-1, 1, 16)[:, None])
        tokenizer.save(folder / "tokenizer.safetensors")
    pretrainer = build(recipe, find_method(method), tokenizer)
    torch.manual_seed(1)  # nothing as it began, or what is not written would not be missed
    for each in pretrainer.parameters():
        each.data.add_(torch.randn_like(each) * 0.02)
    save_weights(pretrainer.state_dict(), folder)
    return folder


def card_code(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def own_embedding(run: Path, photo: Path) -> Tensor:
    opened = open_run(run)
    with torch.no_grad(), photo.open("rb") as file:
        return opened.pretrainer.backbone.pool(opened.evaluation(decode(file, opened.recipe.channels))[None])


def run_card(folder: Path, **names: Any) -> Tensor:
    exec(card_code(folder), names)
    return torch.as_tensor(names["embedding"])


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image in the current folder, which is where a card's code looks for it."""
    monkeypatch.chdir(tmp_path)
    pixels = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    large = nn.functional.interpolate(pixels, (60, 90), mode="bicubic").clamp(0, 1)[0]
    Image.fromarray((large.permute(1, 2, 0) * 255).byte().numpy()).save("photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize(
    ("method", "to"),
    [
        ("mae", "timm"),
        ("mae", "transformers"),
        ("mae", "onnx"),
        ("mae", "torch"),
        ("imagegpt", "transformers"),
        pytest.param("imagegpt", "onnx", marks=pytest.mark.slow),
    ],
)
def test_the_cards_code_gives_the_runs_embedding(method: str, to: str, tmp_path: Path, photo: Path) -> None:
    run = a_run(tmp_path / "run", method)
    assert main(["export", str(run), "--out", "weights", "--to", to]) == 0
    found, own = run_card(Path("weights")), own_embedding(run, photo)
    if method == "imagegpt" and to == "transformers":  # transformers rounds otherwise where a center is cut
        assert found.shape == own.shape
        exact = torch.randint(0, 256, (8, 8), dtype=torch.uint8).numpy()
        Image.fromarray(exact).save("photo.jpg", format="png")
        found, own = run_card(Path("weights")), own_embedding(run, photo)
    # Pillow rounds to 8 bits after resizing, and we do not.
    assert (found - own).abs().max() < (0.02 if method == "mae" else 1e-4) * own.abs().max()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "crossvit_9_240"])
def test_the_cards_code_of_other_layouts(name: str, tmp_path: Path, photo: Path) -> None:
    """NHWC, NCHW, and one whose features timm returns in a list."""
    backbone = small(name)
    height, width = backbone.image_size
    recipe = Resolved.load(a_run(tmp_path / "run") / CONFIG)
    recipe.image_size, recipe.channels, recipe.mean, recipe.std = (height, width), 3, (0.5,) * 3, (0.25,) * 3
    code = loading(recipe, find_method("mae"), backbone, to="timm", where="local-dir:weights")
    assert ("wrap(model).pool" in code) == (name == "crossvit_9_240")
    names: dict[str, Any] = {}
    exec(re.sub(r"timm\.create_model\(.*\)", "given", code), {**names, "given": backbone.model}, names)
    with torch.no_grad():
        torch.testing.assert_close(names["embedding"], backbone.pool(torch.from_numpy(names["images"])))


def test_timms_own_transform_shows_what_evaluation_does(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert main(["export", str(run), "--out", str(tmp_path / "weights")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True, num_classes=0)
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    theirs = transform(Image.fromarray(pixels[0].numpy()))
    assert (theirs - open_run(run).evaluation(pixels)).abs().max() < 1e-5


@torch.no_grad()
def test_timms_model_gives_the_mean_of_the_units(tmp_path: Path) -> None:
    """And says nothing of weights that are not these: timm's tag and license."""
    run = a_run(tmp_path / "run")
    assert main(["export", str(run), "--out", str(tmp_path / "weights")]) == 0
    opened = open_run(run)
    images = trial_images(opened.recipe)[3]
    model = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(model(images), opened.pretrainer.backbone.pool(images, "mean"), rtol=1e-4, atol=1e-5)
    assert timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True, num_classes=5)(images).shape == (
        3,
        5,
    )
    config = json.loads((tmp_path / "weights" / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "origin_url"} & config.keys()


def test_a_run_that_started_from_a_file_is_exported_without_it(tmp_path: Path) -> None:
    start = tmp_path / "private" / "start.safetensors"
    start.parent.mkdir()
    args = {"img_size": [8, 8], "patch_size": 2, "in_chans": 1, "depth": 1}
    save_file(timm.create_model("test_vit", **args).state_dict(), start)
    args = {"depth": 1, "pretrained_cfg_overlay": {"file": str(start)}}
    run = a_run(tmp_path / "run", pretrained=True, model_args=args)
    assert main(["export", str(run), "--out", str(tmp_path / "weights")]) == 0
    images = trial_images(Resolved.load(run / CONFIG))[0]
    model = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True, num_classes=0).eval()
    own = open_run(run).pretrainer.backbone
    with torch.no_grad():
        torch.testing.assert_close(model(images), own.pool(images, "mean"), rtol=1e-4, atol=1e-5)
    for file in ("README.md", "config.json"):
        assert "private" not in (tmp_path / "weights" / file).read_text()


def test_transformers_processor_prepares_images_as_evaluation_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = a_run(tmp_path / "run", channels=3, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    assert main(["export", str(run), "--out", str(tmp_path / "weights"), "--to", "transformers"]) == 0
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "weights")
    for rows, cols in ((8, 8), (30, 30), (20, 30), (60, 40)):  # whose longer side is a whole number
        pixels = torch.randint(0, 256, (3, rows, cols), dtype=torch.uint8)
        theirs = processor(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(theirs, open_run(run).evaluation(pixels), rtol=1e-4, atol=1e-5)


def test_a_tiled_run(tmp_path: Path, photo: Path) -> None:
    run = a_run(tmp_path / "run", image_size=(16, 24), tile_size=8)
    assert main(["export", str(run), "--out", "tile"]) == 0
    assert (tmp_path / "tile" / "tiles.safetensors").exists()
    tile = open_run(run).pretrainer.backbone.tile
    names: dict[str, Any] = {}
    exec(card_code(Path("tile")), names)
    with torch.no_grad():
        torch.testing.assert_close(names["embedding"], tile.pool(torch.from_numpy(names["images"])))


@pytest.mark.slow
def test_a_tiled_run_as_one_graph(tmp_path: Path, photo: Path) -> None:
    run = a_run(tmp_path / "run", image_size=(16, 24), tile_size=8)
    assert main(["export", str(run), "--out", "whole", "--to", "torch"]) == 0
    own = own_embedding(run, photo)
    assert (run_card(Path("whole")) - own).abs().max() < 0.02 * own.abs().max()


def test_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path / "run", data="/home/me/pictures of cats")
    assert main(["export", str(run), "--out", "before"]) == 0
    before = (tmp_path / "before" / "README.md").read_text()
    assert "| probes with labels | not measured |" in before
    assert "/home/me" not in before
    head = ModelCard(before).data
    assert (head.library_name, head.license, head.pipeline_tag) == ("timm", "other", "image-feature-extraction")
    assert "None has been chosen yet" in before

    (run / "metrics.json").write_text(json.dumps({"loss": 0.5, "eval_loss": 0.625}))
    accuracy = {"value": 0.75, "low": 0.7, "high": 0.8}
    few = [{"per_class": 5, "mean": 0.5, "std": 0.01, "draws": 20}]
    (run / "probe.json").write_text(
        json.dumps(
            {
                "data": "labels/",
                "pretrained": {"knn_20": 0.7, "linear": {**accuracy, "strength": 0.1}, "few_labels": few},
                "differences": {"untrained": {"value": 0.1, "low": 0.05, "high": 0.15}},
            }
        )
    )
    assert main(["export", str(run), "--out", "after"]) == 0
    after = (tmp_path / "after" / "README.md").read_text()
    assert "| loss on held-out images | 0.625 |" in after
    assert "| probe: pretrained, linear | 75.0 % (95 % interval 70.0 to 80.0) |" in after
    assert "| probe: ahead of untrained | 10.0 points (95 % interval 5.0 to 15.0) |" in after
    assert "| probe: pretrained, few labels, 5 per class | 50.0 % (mean of 20 draws, spread 1.0) |" in after


def test_the_cards_command_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shlex import split

    from patchcast.commands import pretrain

    given: list[Recipe] = []
    monkeypatch.setattr(pretrain, "pretrain", given.append)
    for method in SMALL:
        recipe = Resolved.load(a_run(tmp_path / method, method) / CONFIG)
        assert main(split(command(recipe))[1:]) == 0
        # All that was found for it, so that nothing is left to the defaults of another day.
        parsed, resolved = (
            {name: value for name, value in each.to_dict().items() if name not in NOT_LEARNED | {"epochs"}}
            for each in (given[-1], recipe)
        )
        assert parsed == resolved


def test_what_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {method: a_run(tmp_path / method, method) for method in SMALL}

    def refused(run: Path, to: str) -> str:
        assert main(["export", str(run), "--out", str(tmp_path / "new"), "--to", to]) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    assert "timm has no ImageGPT" in refused(runs["imagegpt"], "timm")
    assert "for simmim use --to timm" in refused(runs["simmim"], "transformers")
    assert main(["export", str(runs["mae"]), "--out", str(runs["mae"])]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_onnx_without_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(run), "--out", str(tmp_path / "new"), "--to", "onnx"]) == 2
    assert "pip install 'patchcast[export]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


class Counts(nn.Module):
    """What a graph cannot know: its output is another one every time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Decides(nn.Module):
    """What a graph cannot hold: a way that depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_file_that_gives_something_else_is_not_left(tmp_path: Path) -> None:
    images = [torch.randn(1, 3, 32, 32)]
    for norm, complaint in ((Counts(), "does not compute what"), (Decides(), "cannot be exported by torch.export")):
        backbone = wrap("test_vit", img_size=32, depth=1)
        backbone.model.norm = norm
        with pytest.raises(ValueError, match=complaint) as problem:
            save_torch(backbone.eval(), tmp_path / "model.pt2", images)
        assert "\n" not in str(problem.value)
        assert not (tmp_path / "model.pt2").exists()


def test_trial_images_are_smooth_and_normalized(tmp_path: Path) -> None:
    recipe = Resolved.load(a_run(tmp_path / "run", image_size=(32, 48), mean=(0.5,), std=(0.2,)) / CONFIG)
    one_noise, noise, one_natural, natural = trial_images(recipe)
    assert [len(each) for each in (one_noise, noise, one_natural, natural)] == [1, 3, 1, 3]
    assert natural.shape == noise.shape == (3, 1, 32, 48)

    def roughness(images: Tensor) -> Tensor:
        return images.diff(dim=-1).std() / images.std()

    assert roughness(natural) < 0.8 < 1.2 < roughness(noise)
    assert natural.abs().max() <= 2.5 + 1e-5


class Hub:
    """Stands in for huggingface_hub's client: keeps what it is given in a folder."""

    def __init__(
        self, kept: Path, *, exists: bool = False, public: bool = False, fails: Exception | None = None
    ) -> None:
        self.kept, self.exists, self.public, self.fails = kept, exists, public, fails
        self.calls: list[str] = []

    def __call__(self, **library: str) -> Hub:
        assert library["library_name"] == "patchcast"
        return self

    def whoami(self) -> dict[str, str]:
        if self.fails is not None:
            raise self.fails
        return {"name": "me"}

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(f"create {repo}")
        self.public = self.public if self.exists else not private

    def repo_info(self, repo: str) -> Any:
        return type("Info", (), {"private": not self.public})

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        self.calls.append(f"upload {repo_id}")
        shutil.copytree(folder_path, self.kept)
        return type("Done", (), {"commit_url": f"https://hub/{repo_id}/commit/0"})


def test_push(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, hub = a_run(tmp_path / "run"), Hub(tmp_path / "hub")
    monkeypatch.setattr(pushing, "HfApi", hub)
    assert main(["push", str(run), "vit-of-digits", "--private"]) == 0
    assert hub.calls == ["create me/vit-of-digits", "upload me/vit-of-digits"]
    assert not hub.public
    assert "https://hub/me/vit-of-digits/commit/0" in capsys.readouterr().out

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "me/vit-of-digits"
        return str(hub.kept / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    assert "'hf-hub:me/vit-of-digits'" in card_code(hub.kept)
    own = own_embedding(run, photo)
    assert (run_card(hub.kept) - own).abs().max() < 0.02 * own.abs().max()


def test_push_of_a_file(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, hub = a_run(tmp_path / "run"), Hub(tmp_path / "hub")
    monkeypatch.setattr(pushing, "HfApi", hub)
    assert main(["push", str(run), "we/ours", "--to", "torch"]) == 0
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(hub.kept / file))
    assert "hf_hub_download('we/ours', 'model.pt2')" in card_code(hub.kept)
    assert run_card(hub.kept).shape == (1, 128)


def test_push_that_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "run")

    def told(hub: Hub | None, repo: str = "me/there", *options: str) -> str:
        if hub is not None:
            monkeypatch.setattr(pushing, "HfApi", hub)
        assert main(["push", str(run), repo, *options]) == 2
        assert hub is None or not any("upload" in each for each in hub.calls)
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "hf auth login" in told(None), "the real client, which asks for a token before the network"
    assert "write USER/NAME" in told(Hub(tmp_path), "a name with spaces")
    public = told(Hub(tmp_path, exists=True, public=True), "me/there", "--private")
    assert "exists already and is public" in public
    refusal = HfHubHTTPError.__new__(HfHubHTTPError)  # it is made of an answer of the network's
    refusal.args = ("403 Forbidden: not yours.\n\nRequest ID: 1",)
    assert "the Hugging Face hub refused me/there: 403 Forbidden: not yours\n" in told(Hub(tmp_path, fails=refusal))
    assert "cannot be reached (Name or service not known)" in told(
        Hub(tmp_path, fails=HTTPError("Name or service not known"))
    )
