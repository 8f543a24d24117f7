"""The command line for methods that predict codes: what a run leaves behind, how it goes on, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.data import EvalSet, TrainSet, open_images
from patchcast.evaluation import linear_probe
from patchcast.evaluation.layer_probe import extract_imagegpt_layers
from patchcast.honesty import examine
from patchcast.interop import load_imagegpt
from patchcast.methods import on_codes
from patchcast.recipe import Recipe, Resolved
from patchcast.runs import run as opening
from patchcast.runs.run import open_run, start_run
from patchcast.runs.tokenizer import encode, saved_tokenizer
from patchcast.tokenizers.loading import load_tokenizer
from patchcast.tokenizers.palette import Palette
from patchcast.tokenizers.patches import PatchCodebook, PerUnit
from patchcast.training.log import curve
from tests.training.test_run import killed_at

pytestmark = pytest.mark.usefixtures("few_digits", "_no_figures")

SMALL = {"depth": 2, "width": 32, "heads": 4}
DIGITS = ["--data", "digits", "--steps", "4", "--batch_size", "16", "--eval_every", "4", "--workers", "0"]
DIGITS += ["--checkpoint_every", "4"]
NETWORK = ["--model", "imagegpt", "--model_args", json.dumps(SMALL)]
BEIT = ["--method", "beit", "--model", "test_vit", "--codes", "16", *DIGITS]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of all three methods."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for method in ("imagegpt", "imagegpt_masked"):
            assert main(["pretrain", "--method", method, *NETWORK, *DIGITS, "--out", str(folder / method)]) == 0
        assert main(["pretrain", *BEIT, "--out", str(folder / "beit")]) == 0
    return folder


def test_an_imagegpt_run_leaves_everything_behind(runs: Path) -> None:
    run = runs / "imagegpt"
    assert {each.name for each in run.iterdir()} >= {
        "config.yaml", "tokenizer.safetensors", "pretrainer.safetensors", "metrics.csv", "metrics.json", "loss.png",
        "config.json", "model.safetensors", "preprocessor_config.json", "samples.png", "samples.gif", "completions.png",
    }  # fmt: skip
    found = json.loads((run / "metrics.json").read_text())
    assert found["unit"] == "nats per code"
    assert found["bits_per_pixel"] == pytest.approx(found["eval_loss"] / np.log(2))
    assert found["floors"]["uniform"] == pytest.approx(np.log(17)), "the digits have 17 gray levels"
    assert found["eval_loss"] < np.log(17)
    assert found["palette_psnr_db"] is None, "a palette of all 17 levels loses nothing"
    recipe = Resolved.load(run / "config.yaml")
    assert (recipe.weight_decay, recipe.betas, recipe.mean, recipe.codes) == (0.0, (0.9, 0.95), (0.5,), 512)
    with Image.open(run / "samples.gif") as drawing:
        assert drawing.n_frames > 25


def test_its_weights_are_read_by_us_and_by_transformers(runs: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", str(runs / "imagegpt"), "--out", str(tmp_path / "out")]) == 0
    pretrainer = open_run(runs / "imagegpt").pretrainer
    again = load_imagegpt(tmp_path / "out")
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again(images).predictions, pretrainer(images).predictions)
        ids = pretrainer.backbone.tokenizer.encode(images)
        theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(runs / "imagegpt").eval()
        shifted = torch.cat([torch.full((2, 1), 17), ids[:, :-1]], dim=1)
        torch.testing.assert_close(theirs(shifted).logits, pretrainer(images).predictions[:, 0], rtol=0, atol=1e-5)


@pytest.mark.slow  # `tests/commands` has it for a method without codes
def test_the_config_runs_the_same_again(runs: Path, tmp_path: Path) -> None:
    for method in ("imagegpt", "beit"):
        again = tmp_path / method
        assert main(["pretrain", "--config", str(runs / method / "config.yaml"), "--out", str(again)]) == 0
        for file in ("pretrainer.safetensors", "tokenizer.safetensors"):
            first, second = load_file(runs / method / file), load_file(again / file)
            assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["imagegpt", pytest.param("beit", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_bit(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tokenizer that lies in the folder: a run never changes it, even where the data has."""
    command = ["--method", method, *NETWORK, *DIGITS] if method == "imagegpt" else BEIT
    command = ["pretrain", *command, "--steps", "8", "--checkpoint_every", "3", "--flip", "--no_pictures"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    with killed_at(5):
        main([*command, "--out", str(tmp_path / "broken")])
    with monkeypatch.context() as patch:
        patch.setattr(opening, "find_tokenizer", lambda *_: pytest.fail("it is in the folder"))
        assert main([*command, "--out", str(tmp_path / "broken")]) == 0
    whole, broken = (load_file(tmp_path / each / "pretrainer.safetensors") for each in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    for metric in ("loss", "eval_loss"):
        assert curve(tmp_path / "whole" / "metrics.csv", metric) == curve(tmp_path / "broken" / "metrics.csv", metric)


def test_training_sees_the_codes_of_the_images(tmp_path: Path) -> None:
    recipe = Recipe(
        method="imagegpt", model="imagegpt", data="digits", out=tmp_path, model_args=SMALL, flip=True, steps=1
    )
    run = start_run(recipe)
    images, palette, pretrainer = run.source.train, run.tokenizer, run.pretrainer
    assert isinstance(palette, Palette)
    assert run.source.held_out is not None
    data = encode(run.recipe, palette, images, run.source.held_out.images)
    for key in ((0, 3), (1, 3), (2, 3)):
        ids, label = data.train[key]
        image, expected = images[3]
        both = [palette.encode(pixels[None]).view(1, 8, 8) for pixels in (image, image.flip(-1))]
        assert any(torch.equal(ids, each) for each in both)
        assert label == expected
    assert data.held_out is not None
    ids, _ = next(iter(data.held_out))
    test = EvalSet(run.source.held_out.images, run.evaluation)
    pixels = torch.stack([test[i][0] for i in range(len(ids))])
    torch.nn.init.normal_(pretrainer.predictor.project.weight)
    assert torch.equal(on_codes(pretrainer)(ids).loss, pretrainer(pixels).loss)


def test_images_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["pretrain", "--method", "imagegpt", *NETWORK, *DIGITS, "--no_pictures"]
    assert main([*command, "--out", str(tmp_path / "first")]) == 0
    kept = sorted((tmp_path / "cache" / "patchcast").glob("codes-*.npy"))
    assert len(kept) == 4, "codes and labels of the training and of the test images"
    times = [each.stat().st_mtime_ns for each in kept]
    assert main([*command, "--lr", "1e-2", "--out", str(tmp_path / "second")]) == 0
    assert [each.stat().st_mtime_ns for each in sorted((tmp_path / "cache" / "patchcast").glob("codes-*.npy"))] == times


def test_a_palette_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Palette(torch.linspace(-1, 1, 5)[:, None]).save(tmp_path / "grays.npy")
    given = ["--tokenizer", str(tmp_path / "grays.npy"), *DIGITS, "--no_pictures"]
    assert main(["pretrain", "--method", "imagegpt", *NETWORK, *given, "--out", str(tmp_path / "a")]) == 0
    kept = saved_tokenizer(tmp_path / "a")
    assert isinstance(kept, Palette)
    assert kept.vocabulary == 5
    assert Resolved.load(tmp_path / "a" / "config.yaml").codes == 5
    digits = open_images("digits", split="test")
    levels = torch.stack([digits[place].image for place in range(len(digits))])
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert found["palette_psnr_db"] == pytest.approx(kept.psnr(levels))
    assert f"has a PSNR of {found['palette_psnr_db']:.1f} dB" in capsys.readouterr().out
    assert main(["pretrain", "--method", "beit", "--model", "test_vit", *given, "--out", str(tmp_path / "b")]) == 0
    opened = open_run(tmp_path / "b")
    recipe, pretrainer = opened.recipe, opened.pretrainer
    assert isinstance(pretrainer.target.tokenizer, PerUnit)
    assert (recipe.mean, recipe.std) == ((0.5,), (0.5,))
    assert main(["show", str(tmp_path / "b"), "--out", str(tmp_path / "shown.png")]) == 0


def test_a_codebook_of_another_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codebook = runs / "beit" / "tokenizer.safetensors"
    assert isinstance(load_tokenizer(codebook), PatchCodebook)
    command = ["pretrain", *BEIT[:4], *DIGITS, "--tokenizer", str(codebook), "--no_pictures"]
    assert main([*command, "--out", str(tmp_path / "same")]) == 0
    first, second = (load_file(folder / "tokenizer.safetensors") for folder in (runs / "beit", tmp_path / "same"))
    assert torch.equal(first["centres"], second["centres"])
    assert main([*command, "--patch_size", "4", "--out", str(tmp_path / "other")]) == 2
    assert "the codebook has units of 2x2 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method", ["imagegpt", *(pytest.param(method, marks=pytest.mark.slow) for method in ("imagegpt_masked", "beit"))]
)
def test_show_probe_and_check(method: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs / method)
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert main(["show", run, str(tmp_path / "a.png"), "--out", str(tmp_path / "shown.png")]) == 0
    with Image.open(tmp_path / "shown.png") as shown:
        assert len(set(np.asarray(shown.convert("L")).ravel().tolist())) > 15, "the picture is blank"
    assert main(["probe", run, "--draws", "2", "--per_class", "2", "--limit", "100"]) == 0
    assert json.loads((runs / method / "probe.json").read_text())["pretrained"]["few_labels"][0]["per_class"] == 2
    assert main(["probe", run, "--layers", "all", "--limit", "100"]) == 0
    found = json.loads((runs / method / "layers.json").read_text())
    assert list(found["pretrained"]) == list(map(str, range(6 if method == "beit" else 3)))
    assert all(0 < each < 1 for each in found["untrained"].values())
    assert (runs / method / "layers.png").stat().st_size > 5000
    capsys.readouterr()
    assert main(["probe", run, "--layers", "1", "--limit", "100"]) == 0
    assert "Best layer of pretrained: 1," in capsys.readouterr().out
    assert main(["probe", run, "--layers", "1", "7"]) == 2
    assert "there is no layer 7" in capsys.readouterr().err


def test_layers_are_probed_with_the_papers_feature(runs: Path) -> None:
    assert main(["probe", str(runs / "imagegpt"), "--layers", "1"]) == 0
    pretrainer = open_run(runs / "imagegpt").pretrainer
    recipe = Resolved.load(runs / "imagegpt" / "config.yaml")
    sets = (EvalSet(open_images("digits", split=split), opening.evaluation(recipe)) for split in ("train", "test"))
    train, test = (
        extract_imagegpt_layers(pretrainer.backbone, torch.utils.data.DataLoader(each, 256))[1] for each in sets
    )
    found = json.loads((runs / "imagegpt" / "layers.json").read_text())
    assert found["pretrained"]["1"] == linear_probe(train, test).accuracy


@pytest.mark.slow  # `tests/commands` has it for a method without codes
@pytest.mark.parametrize("method", ["imagegpt", "beit"])
def test_check_says_that_they_are_honest(
    method: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("patchcast.commands.check.examine", partial(examine, limit=4, seconds=1.0))  # not 20
    assert main(["check", str(runs / method), "--out", str(tmp_path / "check.png")]) == 0
    told = capsys.readouterr().out
    assert "Honest." in told
    assert "of the floor" in told


def test_sample_and_complete(runs: Path, tmp_path: Path) -> None:
    run = str(runs / "imagegpt")

    def pixels(command: str, name: str, *options: str) -> np.ndarray:
        out = tmp_path / f"{name}.png"
        assert main([command, run, *options, "--out", str(out)]) == 0
        assert out.with_suffix(".gif").stat().st_size > 500
        with Image.open(out) as picture:
            return np.asarray(picture)

    few = ("--count", "4", "--seed", "3")
    first = pixels("sample", "first", *few)
    assert np.array_equal(first, pixels("sample", "again", *few, "--batch_size", "3"))
    assert not np.array_equal(first, pixels("sample", "other", "--count", "4"))
    greedy = pixels("sample", "greedy", "--count", "4", "--temperature", "0")
    assert np.array_equal(greedy, pixels("sample", "likeliest", "--count", "4", "--top_k", "1"))

    # Rows of six: what is given, four completions, the image itself; each image is 64 pixels wide, and a gap.
    drawn = pixels("complete", "halves", "--count", "2")
    assert drawn.shape == (18 + 2 * 65 - 1, 6 * 65 - 1, 3), "titles above the columns"
    drawn = drawn[18:, :, 0]
    given, original = drawn[:64, :64], drawn[:64, -64:]
    assert np.array_equal(given[:32], original[:32])
    assert (given[32:] == 128).all()
    assert all(np.array_equal(drawn[:32, 65 * i : 65 * i + 64], original[:32]) for i in range(6))
    assert not np.array_equal(drawn[:64, 65:129], original)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "black.png")
    own = pixels("complete", "own", str(tmp_path / "black.png"), "--prefix", "60", "--copies", "2", "--top_p", "0.9")
    assert own.shape == (18 + 64, 4 * 65 - 1, 3)
    assert (own[18 : 18 + 48, :64] == 0).all()


def test_a_drawing_of_completions_begins_with_what_is_given(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    assert main(["complete", str(runs / "imagegpt"), "--count", "1", "--copies", "1", "--out", str(out)]) == 0
    with Image.open(out.with_suffix(".gif")) as drawing, Image.open(out) as picture:
        assert 25 <= drawing.n_frames <= 33, "frames that are alike become one"
        begin, row = np.asarray(drawing.convert("L")), np.asarray(picture.convert("L"))
    assert np.abs(begin.astype(int) - row[18:, :64].astype(int)).max() < 3


def test_mistakes_get_one_sentence(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        told = capsys.readouterr().err
        assert told.startswith("patchcast: ")
        assert told.count("\n") == 1
        return told

    def pretrain(method: str, *arguments: str) -> str:
        return fails("pretrain", "--method", method, "--data", "digits", "--out", str(tmp_path / "new"), *arguments)

    assert "needs depth, width, heads in model_args" in pretrain("imagegpt", "--model", "imagegpt")
    assert "own networks, imagegpt, imagegpt_s" in pretrain("imagegpt", "--model", "test_vit")
    assert "imagegpt_s is for imagegpt" in pretrain("mae", "--model", "imagegpt_s")
    assert "mae does not predict codes" in pretrain("mae", "--model", "test_vit", "--codes", "5")
    assert "has no 'patch'" in pretrain("imagegpt", "--model", "imagegpt_s", "--model_args.patch", "2")
    assert "leave out crop_scale" in pretrain("imagegpt", *NETWORK, "--crop_scale", "[0.2, 1.0]")
    assert "leave out pretrained" in pretrain("imagegpt", *NETWORK, "--pretrained", "true")
    assert "leave out mean and std" in pretrain("imagegpt", *NETWORK, "--mean", "[0.3]")
    assert "divisible by its heads; got 32 and 5" in pretrain("imagegpt", *NETWORK, "--model_args.heads", "5")
    assert "1 or 3 channels and the images 4" in pretrain("imagegpt", *NETWORK, "--channels", "4")
    assert "there is no file" in pretrain("beit", "--model", "test_vit", "--tokenizer", str(tmp_path / "none.npy"))
    codebook = str(runs / "beit" / "tokenizer.safetensors")
    assert "is a codebook of patches" in pretrain("imagegpt", *NETWORK, "--tokenizer", codebook)
    assert "has 16 codes, not 9" in pretrain("beit", "--model", "test_vit", "--tokenizer", codebook, "--codes", "9")
    assert "too few for 100000 codes" in pretrain("beit", "--model", "test_vit", "--codes", "100000")
    assert "a palette has 1 to 4096 colors" in pretrain("imagegpt", *NETWORK, "--codes", "5000")
    assert not (tmp_path / "new").exists(), "a refused run leaves nothing behind"
    assert "cannot draw images code by code" in fails("sample", str(runs / "beit"))
    assert "cannot draw images code by code" in fails("complete", str(runs / "imagegpt_masked"))
    assert "an image has 64 codes" in fails("complete", str(runs / "imagegpt"), "--prefix", "65")
    assert "temperature >= 0" in fails("sample", str(runs / "imagegpt"), "--temperature", "-1")
    assert "names a PNG" in fails("sample", str(runs / "imagegpt"), "--out", str(tmp_path / "a.jpg"))
    assert "not a causal ImageGPT" in fails("export", str(runs / "imagegpt_masked"), "--out", str(tmp_path / "out"))
    (tmp_path / "notes.txt").write_text("mine")
    assert "neither a palette" in pretrain("imagegpt", *NETWORK, "--tokenizer", str(tmp_path / "notes.txt"))


def test_a_codebook_is_found_in_what_training_sees(tmp_path: Path) -> None:
    recipe = Recipe(method="beit", model="test_vit", data="digits", out=tmp_path, codes=8, steps=1, batch_size=64)
    run = start_run(recipe)
    codebook, images = run.tokenizer, run.source.train
    assert isinstance(codebook, PatchCodebook)
    assert (codebook.vocabulary, codebook.pixels.stride) == (8, (2, 2))
    train = TrainSet(images, run.augmentation, run.recipe.seed)
    used = codebook.encode(torch.stack([train[0, i][0] for i in range(100)])).unique()
    assert len(used) == 8, "every center is near some patch"
