"""What one small budget teaches: our masked methods, the peers', and the same network untrained.

    python benchmarks/learning.py --data ../shared/data/eurosat --out learning.json

Every row starts from the same encoder (timm's ViT-Tiny with patches of 8 and sine-cosine positions, cut to `--depth`
blocks; lightly draws its weights anew, as it does for all its users), sees the same crops in the same order, and has
the same optimizer, learning rate, schedule, decoder size and probe. A row that is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightly
import stable_pretraining
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import peers
from patchcast.backbones import Backbone, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.data import (
    Augment,
    EpochSampler,
    EvalSet,
    Evaluate,
    Images,
    TrainSet,
    channel_statistics,
    loader,
    open_images,
)
from patchcast.evaluation import extract, knn_accuracy, linear_probe
from patchcast.methods import beit, ijepa, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.schedules import warmup_cosine
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.training.optimization import Optimization, make_optimizer

SIZE, PATCH = (64, 64), 8
DECODER = peers.DecoderSize(width=128, depth=2, heads=4)


@dataclass(frozen=True)
class Row:
    """A loss of images to be minimized, what it trains, and what is done after each step."""

    loss: Callable[[Tensor], Tensor]
    model: nn.Module
    after: Callable[[], None] = lambda: None


def ours(pretrainer: Pretrainer) -> Row:
    for parameter in pretrainer.idle_parameters():
        parameter.requires_grad_(False)
    after = pretrainer.after_step
    return Row(lambda images: pretrainer(images).loss, pretrainer.train(), after)


def theirs(model: nn.Module, loss: peers.Loss) -> Row:
    return Row(loss, model)


def rows(codebook: PatchCodebook, steps: int) -> dict[str, Callable[[Backbone], Row] | None]:
    decoder = {"decoder_width": DECODER.width, "decoder_depth": DECODER.depth, "decoder_heads": DECODER.heads}
    jepa = {"predictor_width": DECODER.width, "predictor_depth": DECODER.depth, "predictor_heads": DECODER.heads}
    return {
        "untrained": None,
        "MAE": lambda backbone: ours(mae(backbone, **decoder)),
        "SimMIM": lambda backbone: ours(simmim(backbone)),
        "BEiT": lambda backbone: ours(beit(backbone, codebook)),
        "I-JEPA": lambda backbone: ours(ijepa(backbone, **jepa, steps=steps)),
        f"MAE, lightly {lightly.__version__}": lambda backbone: theirs(
            *peers.lightly_mae(backbone.model, PATCH, DECODER)
        ),
        f"MAE, stable-pretraining {stable_pretraining.__version__}": lambda backbone: theirs(
            *peers.stable_mae(backbone.model, PATCH, DECODER)
        ),
        f"SimMIM, stable-pretraining {stable_pretraining.__version__}": lambda backbone: theirs(
            *peers.stable_simmim(backbone.model, PATCH)
        ),
    }


def train(row: Row, images: Images, augment: Augment, args: argparse.Namespace) -> tuple[list[float], float]:
    """The losses, and the seconds of processor time of all steps."""
    optimizer = make_optimizer(row.model, Optimization(lr=args.lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, steps=args.steps, warmup=0.05))
    sampler = EpochSampler(len(images), args.batch, seed=args.seed, steps=args.steps)
    losses, spent = [], 0.0
    for step, (batch, _) in enumerate(loader(TrainSet(images, augment, args.seed), sampler, 0)):
        start = time.process_time()
        torch.manual_seed(step)
        loss = row.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(row.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        row.after()
        spent += time.process_time() - start
        losses.append(loss.item())
    return losses, spent


def judge(backbone: Backbone, data: str, evaluate: Evaluate) -> dict[str, float]:
    train, test = (
        extract(backbone, DataLoader(EvalSet(open_images(data, split=split), evaluate), batch_size=256))
        for split in ("train", "test")
    )
    correct = linear_probe(train, test).probe.predict(test.x) == test.labels
    return {"linear": float(correct.float().mean()), "knn": knn_accuracy(train, test, k=(20,))[20]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("learning.json"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="rows whose names start like one of these")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    images = open_images(args.data)
    mean, std = channel_statistics(images)
    augment, evaluate = Augment(SIZE, (0.2, 1.0), True, mean, std), Evaluate(SIZE, mean, std)
    torch.manual_seed(args.seed)
    start = wrap("vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, depth=args.depth)
    start_from_sincos(start)
    sample = [torch.stack([evaluate(images[i].image) for i in range(0, len(images), 5)])]
    codebook = PatchCodebook.fit(sample, stride=start.stride, vocabulary=512)

    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    found["settings"] = {key: str(value) for key, value in vars(args).items()}
    found["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
    for name, make in rows(codebook, args.steps).items():
        if name in found["rows"] or (args.only and not name.startswith(tuple(args.only))):
            continue
        torch.manual_seed(args.seed)
        backbone = copy.deepcopy(start)
        result: dict[str, Any] = {}
        if make is not None:
            losses, spent = train(make(backbone), images, augment, args)
            rate = args.steps * args.batch / spent
            result = {"loss": [losses[0], sum(losses[-20:]) / 20], "images_per_cpu_second": rate}
        result |= judge(backbone.eval(), args.data, evaluate)
        found["rows"][name] = result
        args.out.write_text(json.dumps(found, indent=2) + "\n")
        print(name, result, flush=True)


if __name__ == "__main__":
    main()
