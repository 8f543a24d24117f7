"""Many runs at once on one GPU, each for a given number of steps, read out by the repository's probes.

    python benchmarks/many_runs.py JOBS.jsonl --data FOLDER --out runs/many.jsonl --at_once 12 --seconds 600

A line of JOBS is one run, and the most important come first:

    {"name": "mae", "options": ["--method", "mae", "--model", "vit_tiny_patch16_224"], "steps": 4000, "seed": 0}

`options` are those of `patchcast pretrain`. `finetune` may give several lists of options of `patchcast finetune`;
each makes a model of the run's network. Small networks leave most of a GPU idle, so a dozen processes share it. The
steps are what `benchmarks/learning.py` finds that some seconds of one core take: the GPU only shortens the waiting.
Every finished run appends one line to --out: accuracies on the test images, and `chosen_by`, accuracies on held-out
training images, by which configurations may be compared. No run begins after --seconds, and those that are unfinished
then are ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections import deque
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from patchcast.cli import main as patchcast
from patchcast.commands import pretrain  # noqa: F401  imported once, before processes are forked
from patchcast.data import EvalSet, open_images
from patchcast.evaluation import Features, extract, knn_probe, linear_probe
from patchcast.runs.run import open_run


def judged(folder: Path, data: str, device: str) -> dict[str, Any]:
    run = open_run(folder)
    backbone = run.pretrainer.backbone.to(device).eval()
    loaders = [DataLoader(EvalSet(open_images(data, split=split), run.evaluation), 500) for split in ("train", "test")]
    train, test = (extract(backbone, [(x.to(device), y) for x, y in loader]).to(device) for loader in loaders)
    return accuracies(train, test)


def accuracies(train: Features, test: Features) -> dict[str, Any]:
    linear, knn = linear_probe(train, test), knn_probe(train, test)
    return {
        "linear": linear.accuracy,
        "knn": knn.accuracy,
        "standardized": knn.standardized,
        "chosen_by": {"linear": max(linear.validation.values(), default=None)},
    }


def run(job: dict[str, Any], data: str, out: Path, folder: Path, device: str) -> None:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    place, begun = folder / f"{job['name']}-{job.get('seed', 0)}", time.perf_counter()
    place.mkdir(parents=True)
    words = ["--data", data, "--steps", str(job["steps"]), "--seed", str(job.get("seed", 0)), "--out", f"{place}/run"]
    words += ["--workers", "1" if device == "cuda" else "0", "--eval_every", str(job["steps"])]
    found = {key: job.get(key, 0) for key in ("name", "seed", "steps", "seconds")}
    try:
        with (place / "log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            code = patchcast(["pretrain", *words, *job["options"]])
        if code:
            raise RuntimeError((place / "log").read_text()[-300:])
        found["trained"] = round(time.perf_counter() - begun)
        if not job.get("finetune"):
            found |= judged(place / "run", data, device)
        for number, options in enumerate(job.get("finetune", [])):
            model = place / f"model-{number}"
            with (place / "log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                code = patchcast(["finetune", f"{place}/run", "--data", data, "--out", str(model), *options])
            if code:
                raise RuntimeError((place / "log").read_text()[-300:])
            measured = json.loads((model / "metrics.json").read_text())["accuracy"]
            found.setdefault("finetuned", []).append({"options": options, **measured})
            print(found, flush=True)
        found["wall"] = round(time.perf_counter() - begun)
    except Exception as problem:  # the other runs go on
        traceback.print_exc()
        found["failed"] = f"{type(problem).__name__}: {problem}"[:400]
    with out.open("a") as lines:
        lines.write(json.dumps(found) + "\n")
    print(found, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/many.jsonl"))
    parser.add_argument("--at_once", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for a GPU must not make forked processes unusable
    end = time.perf_counter() + args.seconds
    waiting = deque(json.loads(line) for line in args.jobs.read_text().splitlines() if line.strip())
    running: list[ForkProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        while (waiting or running) and time.perf_counter() < end:
            running = [process for process in running if process.is_alive()]
            while waiting and len(running) < args.at_once:
                job = waiting.popleft()
                where = (job, job.get("data", args.data), args.out, Path(folder), args.device)
                process = multiprocessing.get_context("fork").Process(target=run, args=where)
                process.start()
                running.append(process)
            time.sleep(0.2)
        for process in running:
            process.terminate()
            process.join(10)
            process.kill()
        print(f"{len(waiting)} not begun, {len(running)} ended before their end")


if __name__ == "__main__":
    main()
