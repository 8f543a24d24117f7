"""What makes features worth their seconds: one configuration, trained for a time, read out in several ways.

    python benchmarks/worth.py '{"name": "mae", "seconds": 100}' --data ../shared/data

A configuration is a few of `DEFAULTS`, changed. Training takes `seconds` of processor time of one thread, crops
included; rate and momenta follow the time. Configurations are chosen on the **training** images alone: each is left out
in turn, of a linear (ridge) classifier in closed form, and of the 20 nearest neighbors. `"test": true` reads the test
images as well. Parts that are tried here and that the library lacks are written as its own: a `Target`, a view.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from timm.layers import HybridEmbed
from torch import Tensor, nn

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.evaluation.baselines import ImageStatistics, RandomConvolutions
from patchcast.evaluation.features import Features
from patchcast.evaluation.knn import knn_probe
from patchcast.evaluation.linear import linear_probe
from patchcast.geometry import take
from patchcast.losses import absolute, smooth_l1, squared
from patchcast.methods import beit
from patchcast.plans import BlockMask, GridMask, MultiBlock, RandomMask, RasterOrder
from patchcast.predictors import LinearHead, MLPHead, decoder_for, xavier
from patchcast.pretrainer import Pretrainer, weighted_mean
from patchcast.targets import EMAFeatures, Pixels, Target
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.training.optimization import NEVER_DECAYED, parameter_groups
from patchcast.views import Attend, Drop, replace_or_paint

DEFAULTS: dict[str, Any] = {
    "name": "mae",
    "data": "eurosat",
    "seconds": 100,
    "seed": 0,
    "test": False,
    "baseline": None,  # "statistics" or "convolutions", instead of a network
    "judged": 2500,  # training images to judge by
    "tested": ["mean", "mean+std", "blocks"],  # readouts that are tested, if any are
    # the network
    "stem": "patch",  # or "conv": four 3x3 convolutions
    "patch": 8,
    "depth": 4,
    "width": 192,
    "heads": 3,
    "class_token": True,
    "sincos": True,
    "xavier": False,  # how the MAE paper draws the encoder's weights; timm: normal with deviation 0.02
    "timm": None,  # another architecture of timm
    # the method
    "plan": "random",
    "ratio": 0.75,
    "cell": 2,
    "view": "drop",
    "head": "decoder",
    "decoder": [128, 2],
    "kernel": None,  # of a decoder of convolutions
    "target": "pixels",
    "loss": "squared",
    "repeat": 1,  # masks for each crop
    "pooled": 0.0,  # weight of predicting the target's mean over the whole image from the mean of what was seen
    "visible": 0.0,  # weight of the loss on visible units (a decoder's queries at every unit)
    "top": 3,
    "momentum": [0.99, 1.0],
    # the training
    "batch": 128,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "beta2": 0.95,
    "warmup": 0.05,
    "clip": 1.0,
    "optimizer": "adamw",
    "crop": [0.2, 1.0],
    "turns": False,  # quarter turns and vertical flips besides
    "average": 0.0,  # decay of an average of the weights, which is what is read out
    "bf16": False,  # matrix products in bfloat16 (autocast)
    "fused": True,  # torch's attention kernel
    "held": 0,  # this many training images are left out of the fit of the library's probes, and judge it
    "weights": None,  # a file for the backbone's weights
}


# ---- images ----------------------------------------------------------------------------------------------------------


def load(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images as bytes and labels, to train and to test."""
    kept = Path(tempfile.gettempdir()) / "worth" / f"{name}.pt"
    if kept.exists():
        return torch.load(kept, weights_only=True)
    found = read(folder, name)
    kept.parent.mkdir(exist_ok=True)
    torch.save(found, kept)
    return found


def read(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if name == "digits":
        digits = load_digits()
        x = torch.tensor(digits.images / 16 * 255)[:, None].repeat(1, 3, 1, 1).float()
        x = F.interpolate(x, size=(32, 32), mode="bilinear").byte()
        y, order = (
            torch.tensor(digits.target).long(),
            torch.randperm(len(x), generator=torch.Generator().manual_seed(0)),
        )
        return x[order[:1300]], y[order[:1300]], x[order[1300:]], y[order[1300:]]
    if name == "eurosat":
        train, test = (
            decode(folder / "eurosat/train-5000.parquet", 64),
            decode(folder / "eurosat/test-1000.parquet", 64),
        )
    elif name == "cifar10":
        train = decode(folder / "cifar10/train-00000-of-00001.parquet", 32, 5000)
        test = decode(folder / "cifar10/test-00000-of-00001.parquet", 32, 2000)
    else:
        x, y = decode(folder / "trashnet/photos-600.parquet", 64)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        train, test = (x[order[:400]], y[order[:400]]), (x[order[400:]], y[order[400:]])
    return *train, *test


def decode(file: Path, size: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    table = pq.read_table(file)
    image, label = (next(c for c in table.column_names if c.startswith(k)) for k in (("image", "img"), "label"))
    rows = [row["bytes"] for row in table[image].to_pylist()[:count]]
    side = [Image.open(io.BytesIO(row)).convert("RGB") for row in rows]
    side = [i if i.size == (size, size) else i.resize((size, size), Image.Resampling.BICUBIC) for i in side]
    x = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(size, size, 3) for i in side])
    return x.permute(0, 3, 1, 2).contiguous(), torch.tensor(table[label].to_pylist()[:count]).long()


def crops(x: Tensor, index: Tensor, config: dict[str, Any], normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Random crops of the images, flipped and perhaps turned: one affine map each."""
    batch = len(index)
    low, high = config["crop"]
    area = low + (high - low) * torch.rand(batch)
    aspect = ((2 * torch.rand(batch) - 1) * math.log(4 / 3)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    sign = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    if config["data"] == "digits":
        sign = torch.ones(batch)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * sign, height
    theta[:, 0, 2], theta[:, 1, 2] = (
        (2 * torch.rand(batch) - 1) * (1 - width),
        (2 * torch.rand(batch) - 1) * (1 - height),
    )
    images = x[index]
    if config["turns"]:
        images = torch.cat([part.rot90(k, (2, 3)) for k, part in enumerate(images.split(math.ceil(batch / 4)))])
    grid = F.affine_grid(theta, [batch, *x.shape[1:]], align_corners=False)
    return normalize(
        F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    )


# ---- the network -----------------------------------------------------------------------------------------------------


class Stem(nn.Sequential):
    """3x3 convolutions that halve the image down to the grid of units (Xiao et al. 2021)."""

    def __init__(self, stride: int, width: int) -> None:
        layers: list[nn.Module] = []
        channels, count = 3, int(math.log2(stride))
        for i in range(count):
            wide = width >> (count - 1 - i)
            layers += [nn.Conv2d(channels, wide, 3, 2, 1, bias=False), nn.GroupNorm(1, wide), nn.GELU()]
            channels = wide
        super().__init__(*layers)


class Halves(nn.Module):
    """The positive and the negative part, side by side (Shang et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], 1)


def filters(stride: int, width: int) -> nn.Sequential:
    """5x5 filters in steps of two pixels, both signs, averaged over each unit: what random convolutions measure."""
    return nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), Halves(), nn.AvgPool2d(stride // 2))


def network(config: dict[str, Any], size: int) -> Backbone:
    if config["timm"]:
        return wrap(config["timm"], img_size=size, num_classes=0)
    shape = {"depth": config["depth"], "embed_dim": config["width"], "num_heads": config["heads"], "num_classes": 0}
    if not config["class_token"]:
        shape |= {"class_token": False, "global_pool": "avg"}
    if config["stem"] != "patch":
        make = {"conv": Stem, "filters": filters}[config["stem"]]
        stem = make(config["patch"], config.get("stem_width", 128))
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=size,
            patch_size=1,
            embed_layer=partial(HybridEmbed, backbone=stem),
            **shape,
        )
        backbone = wrap(model, img_size=size)
    else:
        backbone = wrap("vit_tiny_patch16_224", img_size=size, patch_size=config["patch"], **shape)
    if config["xavier"]:
        backbone.apply(xavier)
        weight = backbone.model.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.data.view(len(weight), -1))
    if config["sincos"]:
        start_from_sincos(backbone)
    return backbone


# ---- targets that the library lacks ----------------------------------------------------------------------------------


class Standardized(Target):
    """A target's values with mean 0 and variance 1 over the images it was shown."""

    def __init__(self, target: Target, images: Tensor) -> None:
        super().__init__()
        self.target, self.outputs = target, target.outputs
        values = target(images).flatten(0, 1)
        self.register_buffer("mean", values.mean(0))
        self.register_buffer("scale", values.std(0) + 1e-4 * values.std())

    def forward(self, images: Tensor) -> Tensor:
        return (self.target(images) - self.mean) / self.scale


class HOG(Target):
    """Histograms of oriented gradients (Wei et al. 2022): 9 directions for each cell and channel."""

    def __init__(self, stride: int, cell: int) -> None:
        super().__init__()
        self.stride, self.cell, self.outputs = stride, cell, 3 * 9 * (stride // cell) ** 2

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        size = (dx.square() + dy.square()).sqrt()
        place = (torch.atan2(dx, dy) / math.pi * 9) % 9
        low = place.floor()
        share = place - low
        low = low.long() % 9
        bins = torch.zeros(*images.shape[:2], 9, *images.shape[2:])
        bins.scatter_(2, low[:, :, None], (size * (1 - share))[:, :, None])
        bins.scatter_add_(2, ((low + 1) % 9)[:, :, None], (size * share)[:, :, None])
        cells = F.avg_pool2d(bins.flatten(1, 2), self.cell).unflatten(1, (3, 9))
        cells = F.normalize(cells, dim=2)
        k = self.stride // self.cell
        b, c, o, h, w = cells.shape
        cells = cells.view(b, c * o, h // k, k, w // k, k).permute(0, 2, 4, 1, 3, 5)
        return cells.reshape(b, (h // k) * (w // k), -1)


class Convolutions(Target):
    """Random convolutions, mean of the positive and of the negative part in each unit; `deep` more layers on top."""

    def __init__(self, stride: int, width: int = 128, kernel: int = 5) -> None:
        super().__init__()
        self.stride, self.kernel, self.outputs = stride, kernel, 2 * width
        weight = torch.randn(width, 3, kernel, kernel, generator=torch.Generator().manual_seed(7))
        self.register_buffer("weight", weight / (3 * kernel**2) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.conv2d(F.pad(images, [self.kernel // 2] * 4, mode="reflect"), self.weight)
        mean, size = F.avg_pool2d(maps, self.stride), F.avg_pool2d(maps.abs(), self.stride)
        return torch.cat([(size + mean) / 2, (size - mean) / 2], 1).flatten(2).transpose(1, 2)


class Statistics(Target):
    """Raw pixels of a unit averaged to 2x2 blocks, and the spread in each."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.outputs = stride, 24

    def forward(self, images: Tensor) -> Tensor:
        half = self.stride // 2
        mean = F.avg_pool2d(images, half)
        spread = (F.avg_pool2d(images.square(), half) - mean.square()).clamp(min=1e-6).sqrt()
        x = torch.cat([mean, spread], 1)
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), -1)


class Joined(Target):
    """Several targets side by side, each with its own weight."""

    def __init__(self, parts: list[tuple[Target, float]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part, _ in parts)
        # The loss is a mean over values: each part counts as its weight, however many values it has.
        total = sum(part.outputs for part, _ in parts)
        self.factors = [(weight * total / part.outputs / len(parts)) ** 0.5 for part, weight in parts]
        self.outputs = total

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) * f for part, f in zip(self.parts, self.factors, strict=True)], -1)


class TopEMA(EMAFeatures):
    """The mean of the top blocks' outputs, each normalized for every channel over the batch and the units.

    With `place`, the mean over the batch is taken away at every place by itself: nothing is left that follows from the
    position alone. `white` gives all directions the same variance besides: otherwise a few, the color above all, make
    up most of it. `local` takes away the mean over each image, too. `blank` is `local` with
    the features of a gray image instead of the mean over the batch, so that no other image of the batch matters.
    """

    def __init__(self, backbone: Backbone, top: int, how: str) -> None:
        super().__init__(backbone)
        self.top, self.how = top, how
        self.momentum_now = 0.0

    momentum = property(lambda self: self.momentum_now)

    def forward(self, images: Tensor) -> Tensor:
        outputs = [x[:, self.teacher.features_prefix :] for x in blocks(self.teacher, images)[-self.top :]]
        if self.how == "batch":
            parts = [F.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x) for x in outputs]
        elif self.how == "place":
            parts = [x - x.mean(0) for x in outputs]
            parts = [x / (x.square().mean((0, 1)).sqrt() + 1e-4) for x in parts]
        elif self.how == "local":
            parts = [x - x.mean(0) for x in outputs]
            parts = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in parts]
        elif self.how == "blank":
            gray = blocks(self.teacher, images.new_zeros(1, *images.shape[1:]))[-self.top :]
            parts = [x - y[:, self.teacher.features_prefix :] for x, y in zip(outputs, gray, strict=True)]
            parts = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in parts]
        elif self.how == "white":
            parts = [whitened(x - x.mean(0)) for x in outputs]
        elif self.how == "instance":
            parts = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in outputs]
        else:
            parts = [F.layer_norm(x, x.shape[-1:]) for x in outputs]
        return torch.stack(parts).mean(0)


def whitened(x: Tensor, floor: float = 0.03) -> Tensor:
    """The same in directions of equal variance; those of less than `floor` of the mean variance stay below it."""
    rows = x.flatten(0, 1).double()
    squares, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    scale = (squares.clamp(min=0) + floor * squares.mean()).rsqrt()
    return (rows @ (axes * scale) @ axes.T).view_as(x).to(x.dtype)


# ---- the method ------------------------------------------------------------------------------------------------------


def blocks(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """The raw output of every block, prefix tokens in front; of a model without such, the units' features."""
    if not hasattr(backbone, "run_blocks"):
        return [backbone.units(images)]
    tokens = backbone.embed(images)
    x, found = tokens.x, []
    for i in range(len(backbone.model.blocks)):
        x = backbone.run_blocks(tokens.with_(x=x), i, i + 1)
        found.append(x)
    return found


def make_target(name: str, backbone: Backbone, config: dict[str, Any], sample: Tensor) -> Target:
    stride = backbone.stride[0]
    if "+" in name:
        parts = [part.split("*") for part in name.split("+")]
        made = [(make_target(p[-1], backbone, config, sample), float(p[0]) if len(p) > 1 else 1.0) for p in parts]
        return Joined(made)
    if name == "pixels":
        return Pixels(backbone.stride, channels=3)
    if name == "raw":
        return Pixels(backbone.stride, channels=3, normalize=False)
    if name.startswith("hog"):
        return Standardized(HOG(stride, int(name[3:] or stride // 2)), sample)
    if name.startswith("conv"):
        return Standardized(Convolutions(stride, int(name[4:] or 128)), sample)
    if name == "statistics":
        return Standardized(Statistics(stride), sample)
    if name.startswith("ema"):
        return TopEMA(backbone, config["top"], name[3:] or "batch")
    raise ValueError(name)


def method(backbone: Backbone, config: dict[str, Any], sample: Tensor) -> Pretrainer:
    plan = {
        "random": lambda: RandomMask(config["ratio"]),
        "cells": lambda: GridMask(config["ratio"], cell=config["cell"]),
        "blocks": lambda: BlockMask(config["ratio"], min_units=config.get("min_units", 4)),
        "multi": lambda: MultiBlock(),
        "raster": lambda: RasterOrder(),
        "causal": lambda: RasterOrder(random_prefix=False),
    }[config["plan"]]()
    target: Target
    if config["target"] == "codes":
        return beit(
            backbone, PatchCodebook.fit([sample], stride=backbone.stride, vocabulary=512), mask_ratio=config["ratio"]
        )
    target = make_target(config["target"], backbone, config, sample)
    view = {"drop": Drop, "attend": Attend, "replace": lambda: replace_or_paint(backbone)}[config["view"]]()
    width, depth = config["decoder"]
    predictor: Any
    if config["head"] == "decoder":
        predictor = decoder_for(backbone, target.outputs, width=width, depth=depth, kernel=config["kernel"])
    elif config["head"] == "mlp":
        predictor = MLPHead(
            backbone.width, target.outputs, grid=backbone.grid(backbone.image_size), hidden=width, depth=depth
        )
    else:
        predictor = LinearHead(backbone.width, target.outputs)
    loss = {"squared": squared, "smooth_l1": smooth_l1, "absolute": absolute}[config["loss"]]
    return Pretrainer(backbone, plan=plan, view=view, predictor=predictor, target=target, loss=loss)


class Objective(nn.Module):
    """The pretrainer's loss, with several masks for each crop, and a prediction of the whole image's target."""

    def __init__(self, pretrainer: Pretrainer, config: dict[str, Any]) -> None:
        super().__init__()
        self.pretrainer, self.config = pretrainer, config
        width, outputs = pretrainer.backbone.width, pretrainer.target.outputs
        if config["pooled"]:
            self.whole = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * outputs))

    def forward(self, images: Tensor) -> Tensor:
        parts, repeat = self.pretrainer, self.config["repeat"]
        with torch.no_grad():
            every = parts.target(images)
            whole = torch.cat([every.float().mean(1), every.float().std(1)], -1)
        images, every, whole = (x.repeat(repeat, *[1] * (x.ndim - 1)) for x in (images, every, whole))
        plan = parts.draw(images)
        context = parts.view(parts.backbone, images, plan)
        predictions = parts.predictor(context, plan).float()
        loss = weighted_mean(parts.loss(predictions, take(every, plan.predict)), plan.weight)
        if self.config["pooled"]:
            aim_at = (whole - whole.mean(0)) / (whole.std(0) + 1e-3)  # over the batch: a constant is worth nothing
            loss = loss + self.config["pooled"] * F.smooth_l1_loss(self.whole(context.units.mean(1)), aim_at)
        return loss


# ---- the training ----------------------------------------------------------------------------------------------------


def optimizers(model: nn.Module, config: dict[str, Any]) -> list[torch.optim.Optimizer]:
    betas = (0.9, config["beta2"])
    if config["optimizer"] == "adamw":
        return [
            torch.optim.AdamW(parameter_groups(model, config["weight_decay"]), lr=config["lr"], betas=betas, fused=True)
        ]
    inner = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim == 2 and "blocks" in name and not any(w in name for w in NEVER_DECAYED):
            inner.append(p)
            p.requires_grad_(False)  # so that the other optimizer leaves it out
    groups = parameter_groups(model, config["weight_decay"])
    for p in inner:
        p.requires_grad_(True)
    muon = torch.optim.Muon(inner, lr=config["lr"], weight_decay=config["weight_decay"], adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, lr=config["lr"], betas=betas, fused=True)]


def batches(count: int, batch: int) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(count)
        yield from order.split(batch)[: max(1, count // batch)]


def train(
    objective: Objective, x: Tensor, normalize: Callable[[Tensor], Tensor], config: dict[str, Any]
) -> dict[str, Any]:
    made = optimizers(objective, config)
    target, backbone = objective.pretrainer.target, objective.pretrainer.backbone
    average = copy.deepcopy(backbone) if config["average"] else None
    losses, steps, seen = [], 0, 0
    torch.manual_seed(config["seed"])
    start = time.process_time()
    for index in batches(len(x), config["batch"]):
        done = (time.process_time() - start) / config["seconds"]
        if done >= 1:
            break
        rate = config["lr"] * (done / config["warmup"] if done < config["warmup"] else 1.0)
        rate *= 0.5 * (1 + math.cos(math.pi * max(0.0, done - config["warmup"]) / (1 - config["warmup"])))
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = rate
        views = crops(x, index, config, normalize)
        with torch.autocast("cpu", torch.bfloat16, enabled=config["bf16"]):
            loss = objective(views)
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), config["clip"])
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        if isinstance(target, TopEMA):
            low, high = config["momentum"]
            target.momentum_now = low + (high - low) * done
        target.update(backbone)
        if average is not None:
            decay = min(config["average"], (1 + steps) / (10 + steps))
            torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in backbone.parameters()], 1 - decay)
        losses.append(loss.item())
        steps, seen = steps + 1, seen + len(index)
    if average is not None:
        backbone.load_state_dict(average.state_dict())
    spent = time.process_time() - start
    kept = [round(sum(part) / len(part), 4) for part in (losses[:5], losses[len(losses) // 2 :][:20], losses[-20:])]
    return {"steps": steps, "epochs": round(seen / len(x), 1), "rate": round(seen / spent), "loss": kept}


# ---- readouts --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def readouts(backbone: Backbone, x: Tensor, normalize: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Embeddings of whole images, by the name of the readout."""
    backbone.eval()
    parts: dict[str, list[Tensor]] = {}
    for piece in x.split(250):
        images = normalize(piece.float())
        raw, prefix = blocks(backbone, images), backbone.features_prefix
        if hasattr(backbone, "run_blocks"):
            embedded = backbone.model.patch_embed(images)  # positions would be the same for all images
            raw = [torch.cat([raw[0][:, :prefix], embedded.flatten(1, -2)], 1), *raw]
        last = backbone.model.norm(raw[-1]) if hasattr(backbone, "run_blocks") else raw[-1]
        units = last[:, prefix:]
        both = [torch.cat([u[:, prefix:].mean(1), u[:, prefix:].std(1)], 1) for u in raw]
        found = {
            "mean": units.mean(1),
            "mean+std": torch.cat([units.mean(1), units.std(1)], 1),
            "blocks": torch.cat(both, 1),
            "half": torch.cat(both[len(both) // 2 :], 1),
        }
        if prefix:
            found["class"] = last[:, 0]
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(value).clone() for name, value in parts.items()}


def judge(x: Tensor, labels: Tensor) -> dict[str, float]:
    """On training images alone, each left out in turn: a linear (ridge) classifier, and the neighbors."""
    scaled = (x - x.mean(0)) / (x.std(0) + 1e-6)
    return {
        "linear": round(ridge(scaled, labels), 1),
        "knn": round(leave_one_out(x, labels), 1),
        "knn_centered": round(leave_one_out(x - x.mean(0), labels), 1),
        "knn_scaled": round(leave_one_out(scaled, labels), 1),
    }


def ridge(x: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of least squares to the classes, at the best of some penalties; exact for each left out."""
    y = F.one_hot(labels).float() - F.one_hot(labels).float().mean(0)
    squares, axes = torch.linalg.eigh(x.T @ x)
    z = x @ axes
    best = 0.0
    for penalty in (3.0, 10.0, 30.0, 100.0, 300.0):
        shrunk = z / (squares.clamp(min=0) + penalty)
        fit, leverage = shrunk @ (z.T @ y), (shrunk * z).sum(1, keepdim=True) + 1 / len(x)
        held = y - (y - fit) / (1 - leverage)
        best = max(best, float((held.argmax(1) == labels).float().mean()))
    return 100 * best


def leave_one_out(x: Tensor, labels: Tensor, k: int = 20) -> float:
    x = F.normalize(x, dim=1)
    hits, classes = 0, int(labels.max()) + 1
    for rows in torch.arange(len(x)).split(1000):
        similarity = x[rows] @ x.T
        similarity[torch.arange(len(rows)), rows] = -2
        near, index = similarity.topk(k, dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[index], (near / 0.07).exp())
        hits += int((votes.argmax(1) == labels[rows]).sum())
    return 100 * hits / len(x)


def examine(x: Tensor, labels: Tensor, x_test: Tensor, labels_test: Tensor) -> dict[str, float]:
    """The repository's probes: strength and number of neighbors are chosen on training images."""
    train, test = Features(x, labels), Features(x_test, labels_test)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    scaled = [Features((f.x - mean) / scale, f.labels) for f in (train, test)]
    centered = [Features(f.x - mean, f.labels) for f in (train, test)]
    return {
        "linear": round(100 * linear_probe(train, test, strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1)).accuracy, 1),
        "knn": round(100 * knn_probe(train, test).accuracy, 1),
        "knn_centered": round(100 * knn_probe(*centered).accuracy, 1),
        "knn_scaled": round(100 * knn_probe(*scaled).accuracy, 1),
    }


def probed(x: Tensor, labels: Tensor, held: int) -> dict[str, float]:
    """The library's probes, fitted on training images and judged by `held` others of them."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    fitted, judged = (Features(x[rows], labels[rows]) for rows in (order[:-held], order[-held:]))
    linear = linear_probe(fitted, judged, strengths=(1e-3, 1e-2, 1e-1)).accuracy
    return {"linear": round(100 * linear, 1), "knn": round(100 * knn_probe(fitted, judged).accuracy, 1)}


def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    config = DEFAULTS | config
    timm.layers.set_fused_attn(config["fused"])
    x, labels, x_test, labels_test = load(folder, config["data"])
    mean = x.float().mean((0, 2, 3), keepdim=True)
    std = x.float().std((0, 2, 3), keepdim=True)
    normalize = lambda images: (images - mean) / std  # noqa: E731
    if config["baseline"]:
        module = {"statistics": ImageStatistics(), "convolutions": RandomConvolutions(3)}[config["baseline"]]
        features = [torch.cat([module(normalize(p.float())) for p in part.split(100)]) for part in (x, x_test)]
        return {
            "read": {"mean": judge(features[0][: config["judged"]], labels[: config["judged"]])},
            "test": {"mean": examine(features[0], labels, features[1], labels_test)} if config["test"] else {},
        }
    torch.manual_seed(config["seed"])
    backbone = network(config, x.shape[-1])
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in backbone.parameters())}
    if config["seconds"]:
        sample = normalize(x[:: max(1, len(x) // 500)].float())
        pretrainer = method(backbone, config, sample)
        for p in pretrainer.idle_parameters():
            p.requires_grad_(False)
        result |= train(Objective(pretrainer, config).train(), x, normalize, config)
        if config["weights"]:
            torch.save(backbone.state_dict(), config["weights"])
    judged = min(len(x), config["judged"])
    every = len(x) if config["test"] or config["held"] else judged
    found = readouts(backbone, x[:every], normalize)
    result["read"] = {name: judge(value[:judged], labels[:judged]) for name, value in found.items()}
    if config["held"]:
        result["held"] = {"mean+std": probed(found["mean+std"], labels, config["held"])}
    if config["test"]:
        tested = readouts(backbone, x_test, normalize)
        names = [name for name in config["tested"] if name in found]
        result["test"] = {name: examine(found[name], labels, tested[name], labels_test) for name in names}
    if config.get("save"):
        torch.save((found, labels[:every]), config["save"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=json.loads)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--log", type=Path, default=Path("benchmarks/results/worth.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    result = run(args.config, args.data) | {"all_seconds": 0}
    result["all_seconds"] = round(time.process_time() - start)
    args.log.parent.mkdir(exist_ok=True)
    with args.log.open("a") as log:
        kept = {
            key: value for key, value in args.config.items() if key not in ("save", "weights")
        }  # a path of this machine
        log.write(json.dumps({"config": kept, **result}) + "\n")
    print(args.config.get("name"), json.dumps(result))


if __name__ == "__main__":
    main()
