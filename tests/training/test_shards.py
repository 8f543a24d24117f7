"""Checkpoints of sharded weights: read by any number of devices, and by none; damage is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from patchcast.backbones import wrap
from patchcast.cli import main
from patchcast.pretrainer import Pretrainer
from patchcast.training import checkpoints, shards
from patchcast.training.average import Average
from patchcast.training.checkpoints import Checkpoint, is_whole, latest_checkpoint, load_latest
from patchcast.training.engine import LossModule
from patchcast.training.log import curve
from patchcast.training.optimization import Optimization, make_optimizer
from patchcast.training.sharding import shard
from tests.methods import small
from tests.training.test_devices import FLAGS, assert_alike, command, processes


def network() -> Pretrainer:
    return small("ijepa", wrap("test_vit", img_size=8, patch_size=2, in_chans=1, depth=2))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def saved(alone: None, tmp_path: Path) -> tuple[LossModule, torch.optim.Optimizer, Path]:
    """A sharded pretrainer after a step, its optimizer, and the run folder with its checkpoint."""
    objective = shard(LossModule(network(), "fp32"), init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",)))
    optimizer = make_optimizer(objective.pretrainer, Optimization(lr=1e-3))
    images = torch.randn(2, 1, 8, 8)
    objective(images, objective.pretrainer.draw(images)).backward()
    optimizer.step()
    moments = checkpoints.optimizer_state(optimizer, objective)
    average = Average(objective, 0.9).state_dict()
    state = Checkpoint(3, objective.state_dict(), moments, {"step": 3}, {"Look": {"warned": True}}, average=average)
    shards.save_shards(state, tmp_path / "checkpoints", None)
    return objective, optimizer, tmp_path


def test_it_is_read_whole(saved: tuple[LossModule, torch.optim.Optimizer, Path]) -> None:
    objective, optimizer, out = saved
    resumed = load_latest(out)
    assert resumed is not None
    read = shards.fill(resumed)
    assert read.average is not None
    for name, value in read.average.items():
        assert torch.equal(value, read.model[name]), name
    assert (read.step, read.stream, read.looks) == (3, {"step": 3}, {"Look": {"warned": True}})
    other = LossModule(network(), "fp32")
    checkpoints.load_model_state(other, read.model)
    for name, value in objective.state_dict().items():
        assert torch.equal(getattr(value, "full_tensor", lambda value=value: value)(), other.state_dict()[name]), name
    others = make_optimizer(other.pretrainer, Optimization(lr=1e-3))
    checkpoints.load_optimizer_state(others, other, read.optimizer)
    mine, theirs = (checkpoints.optimizer_state(one, model) for one, model in ((optimizer, objective), (others, other)))
    assert mine.keys() == theirs.keys()
    for name, state in mine.items():
        assert torch.equal(state["exp_avg_sq"].full_tensor(), theirs[name]["exp_avg_sq"]), name
        assert state["step"] == theirs[name]["step"]


def test_no_file_of_it_is_a_pickle(saved: tuple[LossModule, torch.optim.Optimizer, Path]) -> None:
    (folder,) = (saved[2] / "checkpoints").iterdir()
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["files.json", "rest.ckpt", "shard-00001-model-00001-of-00001.safetensors"]
    torch.load(folder / "rest.ckpt", weights_only=True)


@pytest.mark.parametrize("damage", ["a byte", "a file", "the list of files"])
def test_damage_is_noticed(damage: str, saved: tuple[LossModule, torch.optim.Optimizer, Path]) -> None:
    (folder,) = (saved[2] / "checkpoints").iterdir()
    assert is_whole(folder)
    file = folder / ("files.json" if damage == "the list of files" else "shard-00001-model-00001-of-00001.safetensors")
    if damage == "a byte":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    assert not is_whole(folder)
    with pytest.warns(UserWarning, match="is damaged"):
        assert latest_checkpoint(saved[2]) is None


def test_two_are_left(saved: tuple[LossModule, torch.optim.Optimizer, Path]) -> None:
    """Of folders and files alike."""
    objective, _, out = saved
    for step in (4, 5):
        checkpoints.save(Checkpoint(step, {}, {}, {}, {}), out / "checkpoints")
    assert sorted(file.name for file in (out / "checkpoints").iterdir()) == ["step=4.ckpt", "step=5.ckpt"]
    shards.save_shards(Checkpoint(5, objective.state_dict(), {}, {}, {}), out / "checkpoints", None)
    assert [file.is_dir() for file in checkpoints.checkpoints(out / "checkpoints")] == [False, True]


@pytest.mark.slow
def test_any_number_of_devices_resumes(tmp_path: Path) -> None:
    """Saved by two and resumed by one, and the other way round."""
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    often = ["--checkpoint_every", "3", "--ema", "0.9"]
    assert main(command("ijepa", whole, *often)) == 0
    processes(command("ijepa", sharded, *often, *FLAGS["fsdp2"]))
    assert_alike(whole, sharded)
    averages = [curve(out / "metrics.csv", "ema_eval_loss")[1] for out in (whole, sharded)]
    assert averages[0] == pytest.approx(averages[1], rel=1e-4)
    assert len(averages[0]) == 2
    for source, flags in ((whole, FLAGS["fsdp2"]), (sharded, []), (sharded, FLAGS["fsdp2, four"])):
        out = tmp_path / f"{source.name} by {len(flags)} {flags[1:2]}"
        shutil.copytree(source, out)
        checkpoints.remove(out / "checkpoints" / "step=6.ckpt")
        for name in ("pretrainer.safetensors", "metrics.json"):
            (out / name).unlink(missing_ok=True)
        if flags:
            processes(command("ijepa", out, *often, *flags))
        else:
            assert main(command("ijepa", out, *often)) == 0
        assert_alike(whole, out)
