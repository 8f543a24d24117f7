"""`patchcast probe --layers`: where in the network the features are, beside the same network before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast.backbones.base import Backbone
from patchcast.backbones.imagegpt import ImageGPTBackbone
from patchcast.commands.build import build
from patchcast.commands.folder import open_run
from patchcast.commands.probe import OURS, UNTRAINED, labelled_loaders
from patchcast.commands.tokenizer import kept_tokenizer
from patchcast.evaluation import Features, extract_layers
from patchcast.evaluation.layers import BLOCKS, IMAGEGPT_LAYERS, draw_layers, extract_imagegpt_layers, probe_layers

Curves = dict[str, dict[int, float]]


def probe_by_layer(run: Path, layers: Sequence[str], *, data: str | None, limit: int | None) -> Curves:
    """Probe layers of a run's network, print a table, and write layers.json and layers.png into the run folder.

    Args:
        layers: "all", or their numbers.
    Raises:
        ValueError: if the data has no labels, or the network no such layers.
    """
    recipe, pretrainer = open_run(run)
    loaders = labelled_loaders(recipe, data or recipe.data, limit)
    networks = {OURS: pretrainer.backbone, UNTRAINED: build(recipe, kept_tokenizer(run)).backbone}
    console, curves = Console(), Curves()
    for name, backbone in networks.items():
        with console.status(f"Probing {name}"):
            train, test = (_chosen(_extract(backbone, loader), layers) for loader in loaders[:2])
            curves[name] = {layer: found.accuracy for layer, found in probe_layers(train, test).items()}
    console.print(table(curves, loaders[2]))
    (run / "layers.json").write_text(json.dumps({"data": loaders[2], **curves}, indent=2) + "\n")
    axis = IMAGEGPT_LAYERS if isinstance(pretrainer.backbone, ImageGPTBackbone) else BLOCKS
    title = f"{recipe.method} on {loaders[2]}"
    draw_layers(curves, axis=axis, title=title).savefig(run / "layers.png", dpi=120)
    best = max(curves[OURS], key=lambda layer: curves[OURS][layer])
    console.print(
        f"Best at layer {best}, {100 * curves[OURS][best]:.1f} %. Written to {run / 'layers.json'}; the curves are in "
        f"{run / 'layers.png'}."
    )
    return curves


def table(curves: Curves, source: str) -> Table:
    """One row for each layer, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {source}", title_justify="left", title_style="bold")
    shown.add_column("layer", justify="right")
    for name in curves:
        shown.add_column(name, justify="right")
    for layer in curves[OURS]:
        shown.add_row(f"{layer}", *(f"{100 * curve[layer]:.1f}" for curve in curves.values()))
    return shown


def _extract(backbone: Backbone, loader: Any) -> dict[int, Features]:
    extract = extract_imagegpt_layers if isinstance(backbone, ImageGPTBackbone) else extract_layers
    return extract(backbone, loader, device="cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]


def _chosen(features: dict[int, Features], layers: Sequence[str]) -> dict[int, Features]:
    if list(layers) == ["all"]:
        return features
    if unknown := [each for each in layers if each not in map(str, features)]:
        raise ValueError(f"there is no layer {unknown[0]}; there are {min(features)} to {max(features)}, or 'all'")
    return {int(each): features[int(each)] for each in layers}
