"""What a device holds under FSDP2: its share of all states, and one block or two. Measured without any memory.

Tensors are fake (shapes without values), and so is the process group: one process stands for one of any number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.aim_network import aim_vit
from patchcast.methods import aim
from patchcast.plans import RasterOrder
from patchcast.pretrainer import Pretrainer
from patchcast.training.engine import LossModule
from patchcast.training.optimization import parameter_groups
from patchcast.training.sharding import block_modules, shard

FP32, MIB = 4, 2**20


@contextmanager
def one_of(devices: int) -> Iterator[DeviceMesh]:
    """A process group in which nobody else is there, and nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (devices,), mesh_dim_names=("data_parallel",))
    finally:
        dist.destroy_process_group()


def pretrainer_of(backbone: Backbone) -> Pretrainer:
    return aim(backbone, head_depth=2, plan=RasterOrder(random_prefix=False))


def measured(pretrainer: Pretrainer, devices: int) -> tuple[dict[str, float], dict[str, float]]:
    """MiB on one device at the peak of a step (of two images) and after its backward pass, by kind.

    It is the second step, before whose end the optimizer has its states.
    """
    backbone = pretrainer.backbone
    plan = pretrainer.plan(backbone.grid(backbone.image_size), 2, torch.Generator().manual_seed(0))
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    with one_of(devices) as mesh, FakeTensorMode() as fake:
        pretrainer._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        objective = shard(LossModule(pretrainer, "fp32"), mesh)
        optimizer = torch.optim.AdamW(parameter_groups(pretrainer, 0.05), lr=1e-3)
        images, plan = torch.empty(2, backbone.channels, *backbone.image_size), plan._map(fake.from_tensor)
        objective(images, plan).backward()
        optimizer.step()
        optimizer.zero_grad()
        tracker = FSDPMemTracker(pretrainer, optimizer)
        tracker.track_inputs((images,))
        with tracker:
            objective(images, plan).backward()
            peak, after = (
                {getattr(kind, "name", kind): size / MIB for kind, size in kinds.items()}
                for snapshot in ("peak", "current")
                for kinds in tracker.get_tracker_snapshot(snapshot).values()
            )
    return peak, after


def states_of(pretrainer: Pretrainer, devices: int) -> float:
    """MiB of weights, gradients and Adam's two moments, of which every device has its share of the rows."""

    def share(parameter: torch.nn.Parameter) -> int:
        return math.ceil(parameter.shape[0] / devices) * (parameter.numel() // parameter.shape[0])

    parameters = [*pretrainer.parameters()]
    return sum(share(each) * FP32 * (4 if each.requires_grad else 1) for each in parameters if each.numel()) / MIB


def assert_as_arithmetic_says(pretrainer: Pretrainer, devices: int) -> float:
    """The peak in MiB; states are the share of this device, and of gathered weights there are those of a few blocks."""
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    sizes = [sum(each.numel() for each in block.parameters()) * FP32 / MIB for block in block_modules(pretrainer)]
    whole = sum(each.numel() for each in pretrainer.parameters()) * FP32 / MIB
    states = states_of(pretrainer, devices)
    peak, after = measured(pretrainer, devices)
    held = sum(after[kind] for kind in ("SHARDED_PARAM", "SHARDED_GRAD", "OPT"))
    assert held == pytest.approx(states, rel=0.01)
    assert after["UNSHARDED_PARAM"] == 0
    in_no_block = whole - sum(sizes)
    # A block and the next one gathered, copied out of and into what is sent.
    gathered = sum(peak[kind] for kind in ("UNSHARDED_PARAM", "ALL_GATHER", "REDUCE_SCATTER", "UNSHARDED_GRAD"))
    assert gathered <= 4 * max(sizes) + 2 * in_no_block
    assert peak["SHARDED_PARAM"] + peak["OPT"] <= 0.76 * states
    return peak["Total"]


def test_a_device_holds_its_share() -> None:
    peaks = [assert_as_arithmetic_says(pretrainer_of(wrap("test_vit", img_size=32, depth=8)), n) for n in (1, 4)]
    assert peaks[1] < peaks[0] / 2


@pytest.mark.slow
def test_seven_billion_parameters() -> None:
    """AIM-7B: what does not fall with the number of devices are some blocks and the activations."""

    def built() -> Pretrainer:
        with torch.device("meta"):
            return pretrainer_of(wrap(aim_vit("7B")))

    peaks = {devices: assert_as_arithmetic_says(built(), devices) for devices in (2, 8, 64)}
    states = {devices: states_of(built(), devices) for devices in peaks}
    block = sum(each.numel() for each in block_modules(built())[0].parameters()) * FP32 / MIB
    # At the beginning of the backward pass there are all activations and no gradient, at its end the other way round.
    fixed = peaks[64] - 3 / 4 * states[64]
    for devices in (2, 8):
        beginning, end = 3 / 4 * states[devices] + fixed, states[devices] + 3 * block
        assert peaks[devices] == pytest.approx(max(beginning, end), rel=0.03)
