"""What test_processes.py does on two ranks: DDP and FSDP2 over gloo give what a single process gives."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from patchcast.backbones import Backbone
from tests.backbones.zoo import able, images_for, small


class Units(nn.Module):
    """What training does: units of masked images, through one module's forward."""

    def __init__(self, backbone: Backbone, drops: bool) -> None:
        super().__init__()
        self.backbone, self.drops = backbone, drops

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.backbone.embed(images)
        if self.drops:
            tokens = self.backbone.keep(tokens, torch.arange(3).expand(len(images), -1))
        return self.backbone.split(self.backbone.forward_stages(tokens), tokens)[1]


def check(name: str, rank: int) -> None:
    drops = name in able("drop")
    backbone = deepcopy(small(name))
    for parameter in backbone.parameters_in([*backbone.unused(), *backbone.not_in_features(), *backbone.prefix_only()]):
        parameter.requires_grad_(False)
    # Some of timm's attention caches biases in eval mode, and earlier tests in this process may have, without a graph.
    alone = Units(deepcopy(backbone), drops).train().eval()
    images = images_for(backbone, batch=2, seed=rank)
    expected = alone(images)
    (expected.pow(2).mean()).backward()
    wanted = {}
    for key, parameter in alone.named_parameters():
        if parameter.requires_grad:
            wanted[key] = parameter.grad.clone()
            dist.all_reduce(wanted[key])
            wanted[key] /= 2
    ddp = DistributedDataParallel(Units(deepcopy(backbone), drops))
    fsdp = Units(deepcopy(backbone), drops)
    mesh = init_device_mesh("cpu", (2,))
    for block in fsdp.backbone.block_modules():
        fully_shard(block, mesh=mesh)
    fully_shard(fsdp, mesh=mesh)
    for kind, module in (("DDP", ddp), ("FSDP2", fsdp)):
        for _ in range(2):  # DDP tells about missing gradients in the second pass
            module.zero_grad()
            module.train().eval()  # some of timm's attention caches biases in eval mode, with their graph
            out = module(images)
            assert torch.equal(out, expected), f"{kind} {name}: features differ"
            out.pow(2).mean().backward()
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                grad = parameter.grad
                grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
                want = wanted[key.removeprefix("module.")]
                torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}: {key}")
    if rank == 0:
        print(name, "sharded", flush=True)


def check_all(names: list[str], rank: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in names:
        check(name, rank)
    dist.destroy_process_group()
