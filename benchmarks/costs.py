"""What MAE costs by size of model and number of images: the tables of docs/costs.md.

    python benchmarks/costs.py --out costs.json

Memory and work are those of `patchcast pretrain --dry_run`; the time of a step is processor time of one thread, which
other work on the machine disturbs least, in fp32 and bf16 by turns.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from side_by_side import machine

from patchcast.backbones import wrap
from patchcast.methods import mae
from patchcast.recipe import Precision
from patchcast.runs.costs import step_flops, step_memory
from patchcast.training.engine import LossModule
from patchcast.training.optimization import Optimization, make_optimizer
from patchcast.training.progress import duration

MODELS = {
    "ViT-Ti/16": ("vit_tiny", 8),
    "ViT-S/16": ("vit_small", 8),
    "ViT-B/16": ("vit_base", 4),
    "ViT-L/16": ("vit_large", 2),
}
"""timm's name, and images of a step that is timed."""
IMAGES, EPOCHS = (10_000, 100_000, 1_000_000), 100
MEMORY: tuple[tuple[int, Precision], ...] = ((256, "fp32"), (256, "bf16"), (64, "bf16"))
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def measure(model: str, batch: int, turns: int) -> dict[str, float]:
    torch.manual_seed(0)
    pretrainer = mae(wrap(f"{model}_patch16_224")).train()
    row = {"parameters": float(sum(weight.numel() for weight in pretrainer.parameters() if weight.requires_grad))}
    for whole, precision in MEMORY:
        row[f"{precision}_gb_{whole}"] = step_memory(pretrainer, whole, precision=precision).peak / 1e9
    row["gflop_per_image"] = step_flops(pretrainer, 2) / 2e9
    optimizer, images = make_optimizer(pretrainer, Optimization(lr=0.0)), torch.randn(batch, 3, 224, 224)
    taken: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for turn in range(turns + 1):
        for precision in PRECISIONS:
            began = time.process_time()
            optimizer.zero_grad()
            LossModule(pretrainer, precision)(images, pretrainer.draw(images)).backward()
            optimizer.step()
            if turn:  # the first one makes buffers and chooses kernels
                taken[precision].append(time.process_time() - began)
    return {**row, **{f"{precision}_images_per_second": batch / min(taken[precision]) for precision in PRECISIONS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in args.models:
        rows[name] = row = measure(*MODELS[name], args.turns)
        best = max(row[f"{precision}_images_per_second"] for precision in PRECISIONS)
        times = [duration(images * EPOCHS / best) for images in IMAGES]
        print(name, {key: round(value, 3) for key, value in row.items()}, times, flush=True)
        if args.out:
            args.out.write_text(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
