"""What a probe reads from photos in tiles, and from the same photos made small: one network, the same compute for each.

    python benchmarks/tiles_probe.py --data ../shared/data/trashnet --seconds 150

A ViT of 4 blocks, 128 wide, with patches of 16 for images of 128x128, is pretrained with MAE on the photos themselves,
without their labels, from nothing: on photos of 384x512 in 3x4 tiles as one sequence, or on photos made 128x128. Both
get the same CPU time, so that the second sees many more crops. A linear probe of the mean over all units is judged by
five-fold cross-validation: each photo is predicted once, by a probe that has not seen it. Beside them: the same
networks untrained, and the small photos' network run over each tile by itself (`patchcast embed --tile_size`).
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from patchcast.backbones import Backbone, Grid, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.backbones.tiled import Tiled
from patchcast.data import Augment, Evaluate, channel_statistics, open_images
from patchcast.evaluation import Features, accuracy_interval, evaluating, linear_probe, paired_accuracy_difference
from patchcast.extraction.extraction import units_apart
from patchcast.methods import mae

TILE, TILES, FOLDS, BATCH, LR = (128, 128), Grid(3, 4), 5, 16, 1e-3
WHOLE = (TILES.rows * TILE[0], TILES.cols * TILE[1])


def new(*, tiled: bool) -> Backbone:
    torch.manual_seed(0)
    backbone: Backbone = wrap("vit_tiny_patch16_224", img_size=TILE, depth=4, embed_dim=128, num_heads=4)
    if tiled:
        backbone = Tiled(backbone, TILES)
    start_from_sincos(backbone)
    return backbone


def pretrain(backbone: Backbone, photos: list[Tensor], augment: Augment, seconds: float) -> str:
    """For so many seconds of CPU time, warmed up over a tenth of them, the learning rate a cosine."""
    pretrainer = mae(backbone, decoder_width=64, decoder_depth=1)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.05)
    chance, began, step, losses = torch.Generator().manual_seed(0), time.process_time(), 0, []
    while (share := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, share * 10 + 1e-3) * 0.5 * (1 + math.cos(math.pi * share))
        chosen = torch.randint(len(photos), (BATCH,), generator=chance).tolist()
        batch = torch.stack([augment(photos[i], seed=step * BATCH + n) for n, i in enumerate(chosen)])
        loss = pretrainer(batch, generator=chance).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1
    last = losses[-len(losses) // 10 :]
    return f"{step} steps of {BATCH} photos, loss {losses[0]:.2f} to {sum(last) / len(last):.2f}"


@torch.no_grad()
def pooled(backbone: Backbone, photos: list[Tensor], evaluate: Evaluate, run: Callable[[Tensor], Tensor]) -> Tensor:
    with evaluating(backbone):
        batches = [photos[i : i + BATCH] for i in range(0, len(photos), BATCH)]
        return torch.cat([run(torch.stack([evaluate(each) for each in batch])) for batch in batches])


def folds(labels: Tensor) -> Tensor:
    """The fold of each photo, each class spread evenly over all."""
    fold = torch.empty_like(labels)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        fold[members[torch.randperm(len(members), generator=torch.Generator().manual_seed(0))]] = (
            torch.arange(len(members)) % FOLDS
        )
    return fold


def judge(x: Tensor, labels: Tensor) -> Tensor:
    """Whether each photo's class is predicted by the probe of the other folds."""
    every, fold, right = Features(x, labels), folds(labels), torch.zeros(len(labels), dtype=torch.bool)
    for each in range(FOLDS):
        train, test = (torch.nonzero(where).flatten() for where in (fold != each, fold == each))
        probe = linear_probe(every.take(train), every.take(test)).probe
        right[test] = probe.predict(x[test]) == labels[test]
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, default=150.0, help="of CPU time, of each pretraining")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = open_images(args.data)
    mean, std = channel_statistics(source)
    items = [source[i] for i in range(len(source))]
    photos, labels = [each.image for each in items], torch.tensor([each.label for each in items])
    print(f"{len(photos)} photos of {len(labels.unique())} classes; {args.seconds:g} s of CPU time each")
    print(f"{platform.machine()}, one thread, torch {torch.__version__}", flush=True)
    small, tiled = new(tiled=False), new(tiled=True)
    right: dict[str, Tensor] = {}

    def report(name: str, backbone: Backbone, size: tuple[int, int], run: Callable[[Tensor], Tensor]) -> None:
        right[name] = judge(pooled(backbone, photos, Evaluate(size, mean, std), run), labels)
        print(f"{name}: {accuracy_interval(right[name])}", flush=True)

    def apart(images: Tensor) -> Tensor:
        return units_apart(small, images, TILE).mean(dim=(1, 2))

    for state in ("untrained", "pretrained"):
        if state == "pretrained":
            for name, backbone, size in (("made small", small, TILE), ("tiled", tiled, WHOLE)):
                augment = Augment(size, scale=(0.2, 1.0), flip=True, mean=mean, std=std)
                print(f"{name}: {pretrain(backbone, photos, augment, args.seconds)}", flush=True)
        report(f"made small, {state}", small, TILE, small.pool)
        report(f"each tile by itself, {state}", small, WHOLE, apart)
        report(f"tiled, {state}", tiled, WHOLE, tiled.pool)
    for other in ("made small", "each tile by itself"):
        gap = paired_accuracy_difference(right["tiled, pretrained"], right[f"{other}, pretrained"])
        print(f"tiled minus {other}, pretrained: {gap}")


if __name__ == "__main__":
    main()
