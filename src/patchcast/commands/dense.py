"""`patchcast probe --dense`: what single units know, on images whose every pixel has a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from patchcast.commands.labelled import Prepared
from patchcast.commands.probe import PIXELS, labelled_for, write_json
from patchcast.data.masks import Collages, open_masked
from patchcast.evaluation import Interval
from patchcast.evaluation.dense import DenseResult, dense_probe, raw_units
from patchcast.recipe import Device
from patchcast.runs.network import Network, open_network, torch_device

Source = Literal["masks", "collages"]
BATCH = 64
TRAINING, JUDGING = 1000, 300
"""Collages to fit on, and to judge by."""


def probe_densely(
    source: Path | str,
    kind: Source,
    *,
    data: str | None,
    limit: int | None,
    untrained: bool = False,
    device: Device = "auto",
    out: Path | None = None,
    typed: str = "",
) -> dict[str, DenseResult]:
    """Probe the units of a network and of the untrained one, print a table, and write dense.json.

    Args:
        kind: a folder of images and masks (or boxes), or collages of images with one class each.
        limit: use at most so many training images.
    Raises:
        ValueError: if there are no masks, or no labels, in the data.
    """
    network = open_network(source, untrained=untrained)
    where = torch_device(device)
    train, test, told = _masked(network, data, limit) if kind == "masks" else _collages(network, data, limit)
    pixels = raw_units(network.backbone.grid(network.size))
    networks: dict[str, Any] = {**network.beside_its_start(), PIXELS: pixels}
    console, found = Console(), dict[str, DenseResult]()
    for name, backbone in networks.items():
        with console.status(f"Probing {name}"):
            found[name] = dense_probe(backbone, train, test, device=where)
    console.print(table(found, told))
    out = out or network.own_file("dense.json")
    if out is not None:
        write_json(out, {"command": typed, "network": network.name, "kind": kind, "data": told, **_plain(found)})
        console.print(f"Written to {out}.")
    return found


def _masked(network: Network, data: str | None, limit: int | None) -> tuple[DataLoader[Any], DataLoader[Any], str]:
    if data is None:
        raise ValueError("--dense masks needs --data, a folder with 'images' and 'masks' (or 'boxes.json') in it")
    train, test = (
        open_masked(
            Path(data),
            split=split,
            channels=network.backbone.channels,
            transform=network.evaluate,
            size=network.size,
        )
        for split in ("train", "test")
    )
    some: Any = torch.utils.data.Subset(train, range(min(limit or len(train), len(train))))
    kind = "masks" if train.files[0][1] is not None else "boxes"
    told = f"{data}, by {kind}: {len(some):,} images to fit on, {len(test):,} to judge by"
    return DataLoader(some, batch_size=BATCH), DataLoader(test, batch_size=BATCH), told


def _collages(network: Network, data: str | None, limit: int | None) -> tuple[DataLoader[Any], DataLoader[Any], str]:
    labelled = labelled_for(network, data, None)
    train = Collages(Prepared(labelled.train, network.evaluate), min(limit or TRAINING, TRAINING))
    test = Collages(Prepared(labelled.test, network.evaluate), JUDGING, seed=1)
    told = f"collages of {labelled.told}: {len(train):,} to fit on, {len(test):,} to judge by"
    return DataLoader(train, batch_size=BATCH), DataLoader(test, batch_size=BATCH), told


def table(found: Mapping[str, DenseResult], told: str) -> Table:
    """One row for each network, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Every pixel's class, in %, on {told}", title_justify="left")
    shown.add_column("features of units")
    for column in ("linear: IoU", "pixels", "kNN: IoU", "pixels"):
        shown.add_column(column, justify="right")
    for name, each in found.items():
        linear, knn = each.linear, each.knn
        pixels = [f"{100 * dense.pixel_accuracy.value:.1f}" for dense in (linear, knn)]
        shown.add_row(name, _percent(linear.mean_iou), pixels[0], _percent(knn.mean_iou), pixels[1])
    shown.caption = (
        "Mean intersection over union, with its 95 % interval over the test images; share of pixels that are right. "
        "Each unit is told by its own feature alone."
    )
    shown.caption_justify = "left"
    return shown


def _percent(share: Interval) -> str:
    value, low, high = (100 * each for each in share)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(found: Mapping[str, DenseResult]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, each in found.items():
        both = {"linear": each.linear, "knn": each.knn}
        rows[name] = {
            probe: {"mean_iou": dense.mean_iou._asdict(), "pixel_accuracy": dense.pixel_accuracy._asdict()}
            for probe, dense in both.items()
        }
        rows[name]["linear"]["strength"] = each.strength
    return rows
