"""What given seconds teach: the command line at its defaults, and the peers' methods on the same images.

    python benchmarks/learning.py ../shared/data/eurosat --seconds 300 --rows mae simmim lightly_our
    python benchmarks/learning.py mnist-5k --image_size 28 --patch_size 4 --rows untrained mae --out mnist-5k.json

Ours is `patchcast pretrain --method M --model vit_tiny_patch16_224 --model_args.depth 4 --steps N`, everything else
left to its defaults. Two runs that differ by forty steps tell what a step costs, and N follows, all in processor time:
unlike `--minutes`, it does not depend on what else the machine does. The seconds of a row are those that its command
took, its start, evaluations and pictures included; the precision is measured before.

The peers' losses (`peers.py`) train the same encoder on the same crops in the same order, with AdamW and our
schedule, for these seconds without any start: `_its` at the rate of the MAE paper (lightly's and birder's examples
scale it with the batch, stable-pretraining's does not), `_our` at ours, `_bf16` at ours in bfloat16. A peer that cannot
be imported is left out, with the reason. One thread. Every row is read by the default readout and the probes of
`patchcast probe`, which choose on training images only. A seed of a row that is in the file already, from a processor
like this one, is not run again. The table has means over seeds with two standard errors: that of the seeds alone, by
which rows are compared (all have the same test images), and in brackets that of seeds and test images together.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from side_by_side import processor
from torch import nn
from torch.utils.data import DataLoader

import peers
from patchcast.backbones import Backbone, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.data import Augment, EpochSampler, EvalSet, Evaluate, TrainSet, channel_statistics, loader, open_images
from patchcast.evaluation import Features, extract, knn_probe, linear_probe
from patchcast.evaluation.baselines import BASELINES
from patchcast.evaluation.features import extract_with
from patchcast.folder_files import CONFIG
from patchcast.methods import METHODS
from patchcast.recipe import Resolved
from patchcast.runs.run import open_run
from patchcast.schedules import warmup_cosine
from patchcast.training.optimization import Optimization, make_optimizer

MODEL, DEPTH = "vit_tiny_patch16_224", 4
DECODER = peers.DecoderSize(width=128, depth=2, heads=4)
BATCH, OUR_RATE = 128, 1.7e-3  # what the rule of defaults gives for 5,000 images
TIMES = ("seconds", "steps")
MAE_EXAMPLES: dict[str, tuple[Callable[..., Any], float]] = {  # and the rates of the packages' own examples
    "lightly": (peers.lightly_mae, 1.5e-4 * BATCH / 256),
    "stable": (peers.stable_mae, 1.5e-4),
    "birder": (peers.birder_mae, 1.5e-4 * BATCH / 256),
}


class Images(NamedTuple):
    """What all rows are given: a source with labels, and the sizes at which untrained networks and peers see it."""

    data: str
    size: tuple[int, int]
    patch: int

    def loaders(self, evaluate: Evaluate) -> Iterator[DataLoader[Any]]:
        """Images to train probes on, and to test."""
        for split in ("train", "test"):
            yield DataLoader(EvalSet(open_images(self.data, split=split), evaluate), 256)


class Peer(NamedTuple):
    make: Callable[..., Any]
    rate: float
    bf16: bool = False


PEERS = {
    f"{library}_{kind}": peer
    for library, (make, its) in MAE_EXAMPLES.items()
    for kind, peer in {
        "its": Peer(make, its),
        "our": Peer(make, OUR_RATE),
        "bf16": Peer(make, OUR_RATE, bf16=True),
    }.items()
}


def patchcast(*words: str) -> float:
    """Run a command; the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "patchcast", *words], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Cost(NamedTuple):
    """What a command takes: seconds of processor time for `FEW` steps and for each further one."""

    start: float
    step: float
    options: list[str]


FEW, MORE = 10, 50


def command(method: str, seed: int, data: str, steps: int, out: Path, options: list[str]) -> float:
    words = ["--method", method, "--model", MODEL, "--model_args.depth", str(DEPTH), "--data", data]
    return patchcast("pretrain", *words, "--seed", str(seed), "--steps", str(steps), "--out", str(out), *options)


def cost(method: str, data: str, options: list[str], folder: Path) -> Cost:
    """Settle the precision, as a run of two minutes or more does by itself, and measure what steps take in it."""
    command(method, 0, data, FEW, folder / "precision", ["--precision", "auto", *options])
    recipe = Resolved.load(folder / "precision" / CONFIG)
    settled = ["--precision", recipe.precision, "--attention", recipe.attention, *options]
    short, longer = (command(method, 0, data, steps, folder / str(steps), settled) for steps in (FEW, MORE))
    return Cost(short, (longer - short) / (MORE - FEW), settled)


def ours(method: str, seed: int, seconds: float, images: Images, folder: Path, cost: Cost) -> dict[str, Any]:
    steps = max(1, FEW + round((seconds - cost.start) / cost.step))
    spent = command(method, seed, images.data, steps, folder / f"run-{seed}", cost.options)
    run = open_run(folder / f"run-{seed}")
    what = {"steps": steps, "seconds": round(spent), "precision": run.recipe.precision}
    return what | judged(*(extract(run.pretrainer.backbone, each) for each in images.loaders(run.evaluation)))


def theirs(name: str, seed: int, seconds: float, given: Images) -> dict[str, Any]:
    """The peer's loss on our crops, by the clock of this process; the rate follows the time."""
    make, rate, bf16 = PEERS[name]
    images = open_images(given.data)
    mean, std = channel_statistics(images)
    augment = Augment(given.size, (0.2, 1.0), True, mean, std)
    backbone, evaluate = fresh(seed, given)
    model, loss_of = make(backbone.model, given.patch, DECODER)
    optimizer = make_optimizer(model, Optimization(lr=rate))
    endless = EpochSampler(len(images), BATCH, seed=seed, steps=10**6)
    start, steps, done = time.process_time(), 0, 0.0
    for batch, _ in loader(TrainSet(images, augment, seed), endless, 0):
        done = (time.process_time() - start) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup_cosine(int(10_000 * done), steps=10_000, warmup=0.05)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    spent = time.process_time() - start
    what = {"steps": steps, "seconds": round(spent), "precision": "bf16" if bf16 else "fp32"}
    return what | judged(*(extract(backbone.eval(), each) for each in given.loaders(evaluate)))


def judged(train: Features, test: Features) -> dict[str, Any]:
    knn = knn_probe(train, test)
    return {
        "linear": linear_probe(train, test).accuracy,
        "knn": knn.accuracy,
        "standardized": knn.standardized,
    }


def fresh(seed: int, images: Images) -> tuple[Backbone, Evaluate]:
    """The network before any training, and what it sees of an image."""
    source = open_images(images.data)
    torch.manual_seed(seed)
    backbone = wrap(MODEL, img_size=images.size, patch_size=images.patch, depth=DEPTH, in_chans=source.channels)
    start_from_sincos(backbone)
    return backbone, Evaluate(images.size, *channel_statistics(source))


def untrained(seed: int, images: Images) -> dict[str, Any]:
    backbone, evaluate = fresh(seed, images)
    return judged(*(extract(backbone.eval(), each) for each in images.loaders(evaluate)))


def baseline(name: str, images: Images) -> dict[str, Any]:
    source = open_images(images.data)
    evaluate = Evaluate(images.size, *channel_statistics(source))
    return judged(*(extract_with(BASELINES[name](source.channels), each) for each in images.loaders(evaluate)))


def table(found: dict[str, list[dict[str, Any]]], test_images: int) -> Iterator[str]:
    """Rows in Markdown: means over seeds, with the standard error of the seeds, and of seeds and test images.

    Seconds of different processors are not comparable, so that each processor has rows of its own.
    """
    yield "| | processor | seconds | steps | seeds | linear | kNN |"
    yield "|---|---|---|---|---|---|---|"
    every = [run | {"name": name} for name, runs in found.items() for run in runs]
    for name, where in dict.fromkeys((run["name"], run.get("processor", "unknown")) for run in every):
        runs = [run for run in every if (run["name"], run.get("processor", "unknown")) == (name, where)]
        cells = []
        for what in ("linear", "knn"):
            values = [100 * run[what] for run in runs]
            mean = statistics.mean(values)
            of_images = mean * (100 - mean) / test_images
            of_seeds = statistics.variance(values) / len(values) if len(values) > 1 else math.nan
            alone = "" if math.isnan(of_seeds) else f"± {math.sqrt(of_seeds):.1f} "
            both = math.sqrt(of_images + (0.0 if math.isnan(of_seeds) else of_seeds))
            cells.append(f"{mean:.1f} {alone}(± {both:.1f})")
        means = [round(statistics.mean(run[what] for run in runs)) if what in runs[0] else "" for what in TIMES]
        yield f"| {name} | {where} | {means[0] or 'none'} | {means[1]} | {len(runs)} | {' | '.join(cells)} |"


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads(file.read_text()) if file.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning.json")
    parser.add_argument("--image_size", type=int, default=64, help="of untrained networks, baselines and peers")
    parser.add_argument("--patch_size", type=int, default=8, help="likewise")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[*BASELINES, "untrained", "mae", *PEERS])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of pretrain; last")
    args = parser.parse_args()
    if unknown := [row for row in args.rows if row not in {*BASELINES, "untrained", *METHODS, *PEERS}]:
        parser.error(f"no row is called {unknown[0]}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    images = Images(args.data, (args.image_size, args.image_size), args.patch_size)
    for row in args.rows:
        is_trained = row in METHODS or row in PEERS
        name = " ".join([row, f"{args.seconds:g} s", *args.options]) if is_trained else row
        measured: Cost | None = None
        for seed in args.seeds if row not in BASELINES else [0]:
            here = {"seed": seed, "processor": processor()}
            if any(here.items() <= run.items() for run in read(args.out).get(name, [])):
                continue
            if row in METHODS:
                with tempfile.TemporaryDirectory() as folder:
                    measured = measured or cost(row, args.data, args.options, Path(folder))
                    result = ours(row, seed, args.seconds, images, Path(folder), measured)
            elif row in PEERS:
                try:
                    result = theirs(row, seed, args.seconds, images)
                except ImportError as problem:
                    print(f"{row}: not measured: {problem}", flush=True)
                    break
            else:
                result = untrained(seed, images) if row == "untrained" else baseline(row, images)
            found = read(args.out)  # again: another row may have been run meanwhile
            found.setdefault(name, []).append(here | result)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(name, seed, result, flush=True)
    print("\n".join(table(read(args.out), len(open_images(args.data, split="test")))))


if __name__ == "__main__":
    main()
