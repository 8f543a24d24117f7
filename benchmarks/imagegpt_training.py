"""Train an ImageGPT on the spot: palette, floors, nats per code before and after, samples, probes by layer.

    python benchmarks/imagegpt_training.py digits --side 8 --codes 16 --depth 6 --width 96 --heads 4 --steps 1500
    python benchmarks/imagegpt_training.py FOLDER --side 16 --codes 64 --minutes 10 --out run

The data is "digits", a folder of images or parquet files, with a test split. The recipe is the paper's (Adam with betas
0.9 and 0.95, warm-up, cosine to zero, no weight decay), with the learning rate, batch and length given here.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchcast.backbones.base import Grid
from patchcast.backbones.imagegpt import ImageGPT, ImageGPTBackbone
from patchcast.data import EpochSampler, EvalSet, Evaluate, open_images
from patchcast.drawings import save_drawing, save_grid
from patchcast.evaluation.layers import draw_layers, extract_imagegpt_layers, probe_layers
from patchcast.evaluation.ngrams import bits_per_pixel, floors
from patchcast.generation import complete, sample
from patchcast.interop.imagegpt import save_imagegpt
from patchcast.methods.imagegpt import imagegpt
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.encoded import CodeBatches, CodeSet, Encoded, encode_images
from patchcast.tokenizers.palette import fit_palette
from patchcast.training.optimization import warmup_cosine


@torch.no_grad()
def nats(pretrainer: Pretrainer, codes: CodeSet, precision: bool) -> float:
    pretrainer.eval()
    total = 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=precision):
        for start in range(0, len(codes), 128):
            ids = codes.ids(slice(start, start + 128))
            total += pretrainer(ids.view(len(ids), 1, *codes.grid)).loss.item() * len(ids)
    pretrainer.train()
    return total / len(codes)


def probes(pretrainer: Pretrainer, train: torch.utils.data.Dataset, test: torch.utils.data.Dataset) -> dict[int, float]:
    loaders = [torch.utils.data.DataLoader(each, batch_size=128) for each in (train, test)]
    features = [extract_imagegpt_layers(pretrainer.backbone, loader) for loader in loaders]
    return {layer: result.accuracy for layer, result in probe_layers(*features).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("imagegpt-run"))
    for name, default in (("side", 16), ("codes", 64), ("depth", 6), ("width", 128), ("heads", 4), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--minutes", type=float, help="instead of steps: as many as fit")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--probe-images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    sources = {split: open_images(args.data, split=split) for split in ("train", "test")}
    channels, grid = sources["train"].channels, Grid(args.side, args.side)
    transform = Evaluate(tuple(grid), (0.5,) * channels, (0.5,) * channels)
    palette = fit_palette(sources["train"], args.codes, seed=args.seed)
    palette.save(args.out / "palette.npy")
    train, test = (encode_images(each, palette, transform, grid) for each in sources.values())
    test = CodeSet(test.codes[: args.test_images], test.labels, grid, test.vocabulary)
    some = torch.stack([transform(sources["test"][i].image) for i in range(min(500, len(sources["test"])))])
    print(f"{sources['train'].name}: {len(train)} training images at {grid}; palette of {palette.vocabulary}, ", end="")
    print(f"{palette.psnr(((some + 1) * 127.5).round().to(torch.uint8)):.1f} dB on test images")
    print(f"floors on {len(test)} test images: {floors(train.ids(), test.ids(), palette.vocabulary)}")

    network = ImageGPT(grid, palette.vocabulary, depth=args.depth, width=args.width, heads=args.heads)
    drawer = imagegpt(ImageGPTBackbone(network, palette, channels=channels))
    trainer = imagegpt(ImageGPTBackbone(network, Encoded(palette.vocabulary), channels=1))
    trainer.predictor = drawer.predictor
    millions = sum(each.numel() for each in trainer.parameters()) / 1e6
    print(f"network: depth {args.depth}, width {args.width}, {millions:.2f} million parameters")
    before = nats(trainer, test, args.bf16)

    def labelled(split: str) -> torch.utils.data.Dataset:
        images = EvalSet(sources[split], transform)
        places = np.linspace(0, len(images) - 1, min(args.probe_images, len(images))).astype(int)
        return torch.utils.data.Subset(images, np.unique(places).tolist())

    has_labels = sources["train"].labels is not None
    untrained = probes(drawer, labelled("train"), labelled("test")) if has_labels else {}

    optimizer = torch.optim.Adam(trainer.parameters(), lr=args.lr, betas=(0.9, 0.95))
    steps = args.steps or fitting(trainer, optimizer, train, args)
    sampler = EpochSampler(len(train), args.batch, seed=args.seed, steps=steps)
    start = time.perf_counter()
    recent: list[float] = []
    trainer.train()
    for step, (ids, _) in enumerate(CodeBatches(train, sampler, flip=args.flip, seed=args.seed)):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_cosine(step, steps=steps, warmup=0.05)
        recent.append(update(trainer, optimizer, ids, args.bf16))
        if (step + 1) % max(1, steps // 10) == 0:
            mean, recent = sum(recent) / len(recent), []
            print(f"  step {step + 1}/{steps}: {mean:.3f} nats, {time.perf_counter() - start:.0f} s", flush=True)
    after = nats(trainer, test, args.bf16)
    print(f"test loss: {before:.3f} nats per code before, {after:.3f} after {steps} steps of {args.batch} ", end="")
    print(f"({bits_per_pixel(after):.3f} bits per pixel of the quantised image), {time.perf_counter() - start:.0f} s")

    save_imagegpt(drawer, args.out / "transformers")
    chance = torch.Generator().manual_seed(args.seed)
    drawn = sample(drawer, 64, generator=chance, batch_size=64)
    scale = max(1, 48 // args.side)
    save_grid(palette.decode(drawn, grid), args.out / "samples.png", columns=16, scale=scale)
    save_drawing(drawn[:16], palette, grid, args.out / "drawing.gif", columns=8, scale=scale)
    given = some[:: max(1, len(some) // 8)][:8]
    save_grid(completions(drawer, given, chance), args.out / "completions.png", columns=6, scale=scale)
    if has_labels:
        trained = probes(drawer, labelled("train"), labelled("test"))
        for name, curve in (("untrained", untrained), ("trained", trained)):
            print(f"linear probe, {name}: " + ", ".join(f"{100 * each:.1f}" for each in curve.values()))
        draw_layers({"trained": trained, "untrained": untrained}).savefig(args.out / "layers.png", dpi=100)


def completions(drawer: Pretrainer, given: Tensor, chance: torch.Generator) -> Tensor:
    """Rows of: the upper half that is given, four completions, the image itself as the palette has it."""
    palette, grid = drawer.target.tokenizer, drawer.backbone.model.grid
    drawn = complete(drawer, given, grid.units // 2, copies=4, generator=chance)
    whole = palette.decode(palette.encode(given), grid)
    half = whole.clone()
    half[:, :, grid.rows // 2 :] = 128
    rows = [torch.cat([half[i, None], palette.decode(drawn[i], grid), whole[i, None]]) for i in range(len(given))]
    return torch.cat(rows)


def update(trainer: Pretrainer, optimizer: torch.optim.Optimizer, ids: Tensor, bf16: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = trainer(ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def fitting(trainer: Pretrainer, optimizer: torch.optim.Optimizer, train: CodeSet, args: argparse.Namespace) -> int:
    """How many steps take the given minutes, by the third to sixth; at a learning rate of zero, so none is a step."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    times = []
    for ids, _ in CodeBatches(train, EpochSampler(len(train), args.batch, seed=0, steps=6)):
        start = time.perf_counter()
        update(trainer, optimizer, ids, args.bf16)
        times.append(time.perf_counter() - start)
    optimizer.state.clear()
    return max(10, round(args.minutes * 60 / (sum(times[2:]) / 4)))


if __name__ == "__main__":
    main()
