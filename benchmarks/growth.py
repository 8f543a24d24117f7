"""How time and memory of a training step grow with tokens, tiles, the batch and processes, and by which powers.

    python benchmarks/growth.py --out growth.png

A step is forward and backward; time is processor time on a CPU (one thread). Tokens grow by the image's size and tiles
by their number, at one image a step; the batch grows at the smallest size. Processes share the gradients of a batch
each (DDP over gloo); what grows with them is the time and memory of one. A power of 1 is growth in proportion.
Attention takes time by the square of the tokens in the end; fused, it takes memory in proportion.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import machine, peak, seconds
from torch import Tensor, distributed, nn
from torch.multiprocessing import spawn

from patchcast.backbones import wrap
from patchcast.backbones.backbone import Backbone
from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.backbones.tiled import Tiled
from patchcast.geometry import Grid
from patchcast.methods import aim, ijepa, imagegpt, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.encoded import Encoded

PATCH, SIDES, TILES, BATCHES, PROCESSES = (
    8,
    (8, 12, 16, 24, 32, 48),
    (1, 2, 4, 8, 16, 32),
    (1, 2, 4, 8, 16, 32),
    (1, 2, 4),
)
METHODS: Mapping[str, Callable[[Backbone], Pretrainer]] = {
    "MAE": partial(mae, decoder_width=96, decoder_depth=2),
    "SimMIM": simmim,
    "I-JEPA": partial(ijepa, predictor_depth=2),
    "AIM": partial(aim, head_depth=2),
}
Case = tuple[Pretrainer, Tensor]


def vit(side: int) -> Backbone:
    return wrap("vit_tiny_patch16_224", img_size=side * PATCH, patch_size=PATCH, depth=4)


def whole(method: Callable[[Backbone], Pretrainer], side: int, batch: int) -> Case:
    return method(vit(side)), torch.randn(batch, 3, side * PATCH, side * PATCH)


def tiled(method: Callable[[Backbone], Pretrainer], tiles: int) -> Case:
    backbone = Tiled(vit(SIDES[0]), Grid(1, tiles))
    return method(backbone), torch.randn(1, 3, *backbone.image_size)


def codes(side: int, batch: int) -> Case:
    network = ImageGPT(Grid(side, side), 64, depth=4, width=192, heads=3)
    return imagegpt(ImageGPTBackbone(network, Encoded(64), channels=1)), torch.randint(64, (batch, 1, side, side))


class Loss(nn.Module):
    """DDP looks through what a module returns, and knows nothing of `Output`."""

    def __init__(self, pretrainer: Pretrainer) -> None:
        super().__init__()
        self.pretrainer = pretrainer.train()
        for parameter in pretrainer.idle_parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.pretrainer(images).loss


def measure(case: Case, device: str, share: Callable[[nn.Module], nn.Module] = lambda model: model) -> list[float]:
    """Seconds and mebibytes of a step."""
    model, images = share(Loss(case[0]).to(device)), case[1].to(device)

    def step() -> None:
        model(images).backward()
        model.zero_grad()  # so that a step begins with as little as it ends with

    step()
    return [min(seconds(step, device) for _ in range(3)), peak(step, device) / 2**20]


def one_of(rank: int, processes: int, meeting: str, method: str, found: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    found[rank] = measure(whole(METHODS[method], SIDES[1], 4), "cpu", nn.parallel.DistributedDataParallel)
    distributed.destroy_process_group()


def in_processes(method: str, processes: int) -> list[float]:
    """Seconds and mebibytes of a step in one of them: the mean over all."""
    with tempfile.TemporaryDirectory() as folder, torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        spawn(one_of, (processes, f"{folder}/meeting", method, found), nprocs=processes)
        return np.mean(list(found.values()), axis=0).tolist()


def power(x: Iterable[float], y: Iterable[float]) -> float:
    """The exponent between the last two: where growth is heading."""
    return float(np.diff(np.log(list(y)[-2:]))[0] / np.diff(np.log(list(x)[-2:]))[0])


def sweep(name: str, device: str) -> dict[str, tuple[list[float], list[list[float]]]]:
    """By what grows: how much of it, and seconds and mebibytes of a step at each."""
    torch.manual_seed(0)
    make = codes if name == "ImageGPT" else partial(whole, METHODS[name])
    tokens = [measure(make(side, 1), device) for side in SIDES]
    batch = [measure(make(SIDES[0], batch), device) for batch in BATCHES]
    found = {"tokens, one image": ([side**2 for side in SIDES], tokens), "images of 64 tokens": (list(BATCHES), batch)}
    if name in METHODS:
        tiles = [measure(tiled(METHODS[name], count), device) for count in TILES]
        found["tiles of 64 tokens"] = (list(TILES), tiles)
        if device == "cpu":
            shared = [in_processes(name, count) for count in PROCESSES]
            found["processes, 4 images each"] = (list(PROCESSES), shared)
    return found


def main() -> None:
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in machine(args.device).items()))
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    grows = ("tokens, one image", "images of 64 tokens", "tiles of 64 tokens", "processes, 4 images each")
    print("| | " + " | ".join(f"{each}: time | memory" for each in grows) + " |\n" + "|---" * 9 + "|")
    for name in (*METHODS, "ImageGPT"):
        found, cells = sweep(name, args.device), []
        for column, what in enumerate(grows):
            x, y = found.get(what, ([], []))
            for row, label in enumerate(("seconds", "MiB")):
                values = [each[row] for each in y]
                cells.append(f"{power(x, values):.2f}" if x else "")
                if not x:
                    continue
                axes[row][column].loglog(x, values, marker="o", label=name)
                axes[row][column].set(xlabel=what, ylabel=label)
                axes[row][column].set_xticks(x, labels=[f"{each:,}" for each in x])
                axes[row][column].minorticks_off()
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    axes[0][0].legend()
    figure.savefig(args.out, dpi=120)
    print(f"powers are of the last step of each; drawn in {args.out}")


if __name__ == "__main__":
    main()
