"""`patchcast embed`: what it writes, that it goes on, and what it says of mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from patchcast.cli import main
from patchcast.commands import embed as command
from patchcast.data import Evaluate, open_images
from patchcast.runs.run import open_run

MODEL = ["test_vit", "--untrained"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes in two class folders, one of them torn."""
    root, chance = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i, (height, width) in enumerate([(64, 96), (96, 64), (50, 200), (64, 96), (30, 30), (64, 64)]):
        folder = root / ("cats" if i % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.fromarray(chance.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torn = root / "cats" / "7.png"
    torn.write_bytes((root / "cats" / "1.png").read_bytes()[:400])
    return root


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiled"
    arguments = ["--model", "test_vit", "--patch_size", "8", "--steps", "2", "--batch_size", "4", "--workers", "0"]
    options = ["--method", "mae", "--method_args", '{"decoder_width": 32, "decoder_depth": 1}']
    tiles = ["--tile_size", "32", "--image_size", "[64, 96]", "--data", str(photographs), "--out", str(out)]
    with pytest.warns(UserWarning, match=r"7\.png"):
        assert main(["pretrain", *options, *arguments, *tiles]) == 0
    return out


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_run_on_tiles_is_embedded_as_it_was_trained(run: Path, photographs: Path, tmp_path: Path) -> None:
    assert {"model.safetensors", "tiles.safetensors", "reconstructions.png"} <= {each.name for each in run.iterdir()}
    assert set(load_file(run / "tiles.safetensors")) == {
        f"{part}.{name}" for part in ("before", "tokens", "after") for name in ("positions", "gate")
    }
    assert main(["embed", str(run), "--data", str(photographs), "--out", str(tmp_path / "f.parquet")]) == 0
    table = pq.read_table(tmp_path / "f.parquet")
    names = ["cats/1.png", "cats/3.png", "cats/5.png", "dogs/0.png", "dogs/2.png", "dogs/4.png"]
    assert table.column("path").to_pylist() == [str(photographs / name) for name in names]
    assert table.column("label").to_pylist() == [0, 0, 0, 1, 1, 1]
    opened = open_run(run)
    recipe, pretrainer = opened.recipe, opened.pretrainer
    image = open_images(str(photographs))[5].image  # the torn one comes before it
    with torch.no_grad():
        wanted = pretrainer.backbone.pool(Evaluate(recipe.image_size, recipe.mean, recipe.std)(image)[None])[0]
    torch.testing.assert_close(torch.tensor(table.column("features")[4].as_py()), wanted, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.slow
def test_a_run_on_tiles_is_found_honest(run: Path, tmp_path: Path) -> None:
    assert main(["check", str(run), "--out", str(tmp_path / "check.png")]) == 0


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
@pytest.mark.parametrize("kind", ["pooled", "tokens", "maps"])
def test_a_model_over_tiles_by_themselves(photographs: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    """Each image has as many units as it has pixels for; both formats hold the same."""
    out = tmp_path / f"f.{suffix}"
    options = ["--features", kind, "--tile_size", "32", "--max_tiles", "6", "--out", str(out)]
    torch.manual_seed(0)
    assert main(["embed", *MODEL, "--data", str(photographs), *options]) == 0
    units = {"0.png": (4, 6), "1.png": (6, 4), "2.png": (2, 8), "4.png": (2, 2)}  # 50x200 is made 32x128
    for name, grid in units.items():
        path = next(str(each) for each in photographs.rglob(name))
        shape = {"pooled": (128,), "tokens": (grid[0] * grid[1], 64), "maps": (64, *grid)}[kind]
        if suffix == "parquet":
            row = next(each for each in pq.read_table(out).to_pylist() if each["path"] == path)
            assert tuple(row.get("shape", [128])) == shape
            assert len(row["features"]) == np.prod(shape)
        else:
            with safe_open(out, "pt") as file:
                paths = json.loads(file.metadata()["paths"])
                tensor = file.get_tensor("features")[paths.index(path)] if kind == "pooled" else file.get_tensor(path)
                assert file.get_tensor("labels").tolist() == [0, 0, 0, 1, 1, 1]
            assert tensor.shape == shape
            assert tensor.isfinite().all()
            assert tensor.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:skipped")
def test_it_goes_on_where_it_was_stopped(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    monkeypatch.setattr(command, "IMAGES_PER_PART", 2)
    arguments = ["embed", str(run), "--data", str(photographs)]
    assert main([*arguments, "--out", str(tmp_path / "whole.safetensors")]) == 0
    write, written = command.write_part, []

    def stopped(parts: Path, start: int, *rest: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(start)
        write(parts, start, *rest)

    monkeypatch.setattr(command, "write_part", stopped)
    assert main([*arguments, "--out", str(tmp_path / "f.safetensors")]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert main([*arguments, "--features", "maps", "--out", str(tmp_path / "f.safetensors")]) == 2
    assert "holds a part of other features (kind differ)" in capsys.readouterr().err
    written.clear()
    written.append(-1)
    (tmp_path / "f.safetensors.parts" / "0000000004.unfinished").write_bytes(b"half of a part")  # as if it was killed
    assert main([*arguments, "--out", str(tmp_path / "f.safetensors")]) == 130
    assert written == [-1, 4], "the parts that are there are not computed again"
    monkeypatch.setattr(command, "write_part", write)
    assert main([*arguments, "--out", str(tmp_path / "f.safetensors")]) == 0
    assert (tmp_path / "f.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


KILLED = """
import os, signal, sys
import safetensors.torch
from patchcast.cli import main
from patchcast.commands import embed as command

command.IMAGES_PER_PART, save_file = 2, safetensors.torch.save_file

def half(tensors, file, metadata):
    save_file(tensors, file, metadata)
    if file.name.startswith(".0000000002."):
        file.write_bytes(file.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

safetensors.torch.save_file = half
main(sys.argv[1:])
"""


@pytest.mark.slow  # for the process: the test above has what it leaves behind
@pytest.mark.filterwarnings("ignore:skipped")
def test_it_resumes_where_it_was_killed(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by the kernel's own signal with its second part half written: no code of ours runs after it."""
    arguments = ["embed", *MODEL, "--tile_size", "32", "--features", "maps", "--data", str(photographs), "--out"]
    out, whole = tmp_path / "f.safetensors", tmp_path / "whole.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments, str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not out.exists()
    half, *left = sorted(file.name for file in (tmp_path / "f.safetensors.parts").iterdir())
    assert half.startswith(".0000000002.")
    assert left == ["0000000000.safetensors", "plan.json"]
    monkeypatch.setattr(command, "IMAGES_PER_PART", 2)
    write, written = command.write_part, []
    monkeypatch.setattr(
        command, "write_part", lambda parts, start, *rest: (written.append(start), write(parts, start, *rest))
    )
    assert main([*arguments, str(out)]) == 0
    assert written == [2, 4, 6]
    monkeypatch.setattr(command, "write_part", write)
    assert main([*arguments, str(whole)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_mistakes_get_one_sentence(
    run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        assert main(["embed", *arguments]) == 2
        return capsys.readouterr().err

    data = ("--data", str(photographs))
    assert "--out must end in .parquet or .safetensors" in fails(*MODEL, *data, "--out", str(tmp_path / "f.csv"))
    (tmp_path / "there.parquet").touch()
    assert "exists already" in fails(*MODEL, *data, "--out", str(tmp_path / "there.parquet"))
    out = ("--out", str(tmp_path / "f.parquet"))
    assert "did you mean test_vit" in fails("test_vot", "--untrained", *data, *out)
    assert "has tiles of 32 pixels already" in fails(str(run), *data, *out, "--tile_size", "32")


@pytest.mark.filterwarnings("ignore:skipped")
def test_readouts(photographs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pooled feature is that of `Backbone.pool`; over tiles, the same function of the units of all tiles."""
    out, data = tmp_path / "f.safetensors", ["--data", str(photographs)]
    assert main(["embed", str(run), *data, "--readout", "mean_std", "--out", str(out)]) == 0
    opened = open_run(run)
    recipe, pretrainer = opened.recipe, opened.pretrainer
    image = open_images(str(photographs))[0].image
    with torch.no_grad():
        seen = Evaluate(recipe.image_size, recipe.mean, recipe.std)(image)[None]
        wanted = pretrainer.backbone.pool(seen, "mean_std")[0]
    torch.testing.assert_close(load_file(out)["features"][0], wanted, atol=1e-5, rtol=1e-4)
    files = {kind: tmp_path / f"{kind}.safetensors" for kind in ("tokens", "pooled")}
    for kind, file in files.items():
        readout = ["--readout", "mean_std"] if kind == "pooled" else []
        assert (
            main(["embed", *MODEL, *data, "--tile_size", "32", "--features", kind, *readout, "--out", str(file)]) == 0
        )
    with safe_open(files["pooled"], "pt") as pooled, safe_open(files["tokens"], "pt") as tokens:
        for place, path in enumerate(json.loads(pooled.metadata()["paths"])):
            units = tokens.get_tensor(path)
            wanted = torch.cat([units.mean(dim=0), units.std(dim=0, correction=0)])
            torch.testing.assert_close(pooled.get_tensor("features")[place], wanted, atol=1e-5, rtol=1e-4)
    capsys.readouterr()
    new = ["--out", str(tmp_path / "new.parquet")]
    assert main(["embed", *MODEL, *data, "--tile_size", "32", "--readout", "class", *new]) == 2
    assert "with --tile_size, use one of mean, mean_std" in capsys.readouterr().err
    assert main(["embed", *MODEL, *data, "--features", "maps", "--readout", "class", *new]) == 2
    assert "--features maps one per unit" in capsys.readouterr().err
