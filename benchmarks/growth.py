"""How time and memory of a training step grow with tokens and with the batch, and the powers that fit them.

    python benchmarks/growth.py --out growth.png

A step is forward and backward; time is processor time on a CPU (one thread). Tokens grow by the image's size, at one
image a step; the batch grows at the smallest size. A power of 1 is growth in proportion. Attention takes time by the
square of the tokens in the end; fused, it takes memory in proportion.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from side_by_side import machine, peak, seconds

from patchcast.backbones import wrap
from patchcast.backbones.base import Grid
from patchcast.backbones.imagegpt import ImageGPT, ImageGPTBackbone
from patchcast.methods import aim, ijepa, imagegpt, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.encoded import Encoded

PATCH, SIDES, BATCHES = 8, (8, 12, 16, 24, 32, 48), (1, 2, 4, 8, 16, 32)


def vit(method: Callable[..., Pretrainer], side: int) -> Pretrainer:
    size = side * PATCH
    backbone = wrap("vit_tiny_patch16_224", img_size=size, patch_size=PATCH, depth=4)
    return method(backbone)


def pixels(side: int) -> Pretrainer:
    return imagegpt(
        ImageGPTBackbone(ImageGPT(Grid(side, side), 64, depth=4, width=192, heads=3), Encoded(64), channels=1)
    )


METHODS: dict[str, Callable[[int], Pretrainer]] = {
    "MAE": partial(vit, partial(mae, decoder_width=96, decoder_depth=2)),
    "SimMIM": partial(vit, simmim),
    "I-JEPA": partial(vit, partial(ijepa, predictor_depth=2)),
    "AIM": partial(vit, partial(aim, head_depth=2)),
    "ImageGPT": pixels,
}


def measure(make: Callable[[int], Pretrainer], side: int, batch: int, device: str) -> tuple[float, float]:
    """Seconds and mebibytes of a step."""
    torch.manual_seed(0)
    pretrainer = make(side).to(device).train()
    is_codes = make is pixels
    images = (
        torch.randint(64, (batch, 1, side, side)) if is_codes else torch.randn(batch, 3, side * PATCH, side * PATCH)
    )
    images = images.to(device)

    def step() -> None:
        pretrainer.zero_grad()
        pretrainer(images).loss.backward()

    step()
    return min(seconds(step, device) for _ in range(3)), peak(step, device) / 2**20


def power(x: list[int], y: list[float]) -> float:
    """The exponent between the last two: where growth is heading."""
    return float(np.diff(np.log(y[-2:]))[0] / np.diff(np.log(x[-2:]))[0])


def main() -> None:
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in machine(args.device).items()))
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    tokens = [side**2 for side in SIDES]
    print("| | time by tokens | memory by tokens | time by batch | memory by batch |\n|---|---|---|---|---|")
    for name, make in METHODS.items():
        by_tokens = [measure(make, side, 1, args.device) for side in SIDES]
        by_batch = [measure(make, SIDES[0], batch, args.device) for batch in BATCHES]
        cells = []
        for column, (x, found) in enumerate(((tokens, by_tokens), (list(BATCHES), by_batch))):
            for row, label in enumerate(("seconds", "MiB")):
                y = [each[row] for each in found]
                axes[row][column].loglog(x, y, marker="o", label=name)
                axes[row][column].set(xlabel=("tokens, one image", "images of 64 tokens")[column], ylabel=label)
                cells.append(f"{power(x, y):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    axes[0][0].legend()
    figure.savefig(args.out, dpi=120)
    print(f"powers are of the last doubling or so; drawn in {args.out}")


if __name__ == "__main__":
    main()
