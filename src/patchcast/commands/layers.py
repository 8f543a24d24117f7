"""`patchcast probe --layers`: where in the network the features are, beside the same network before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.commands.probe import feature_cache, labelled_for, write_json
from patchcast.evaluation import Features, extract_layers
from patchcast.evaluation.features import Loader
from patchcast.evaluation.layer_probe import BLOCKS, IMAGEGPT_LAYERS, draw_layers, extract_imagegpt_layers, probe_layers
from patchcast.recipe import Device
from patchcast.runs.network import open_network, torch_device

Curves = dict[str, dict[int, float]]


def probe_by_layer(
    source: Path | str,
    layers: Sequence[str],
    *,
    data: str | None,
    limit: int | None,
    untrained: bool = False,
    device: Device = "auto",
    cached: bool = True,
    out: Path | None = None,
    typed: str = "",
) -> Curves:
    """Probe layers of a network, print a table, and write layers.json and layers.png into the run folder.

    Args:
        layers: "all", or their numbers.
        out: the JSON file, beside which the picture will lie; None for the run folder, and for none of a timm model.
    Raises:
        ValueError: if the data has no labels, or the network no such layers.
    """
    network = open_network(source, untrained=untrained)
    labelled = labelled_for(network, data, limit)
    where, cache = torch_device(device), feature_cache() if cached else None
    networks = network.beside_its_start()
    console, curves = Console(), Curves()
    for name, backbone in networks.items():
        with console.status(f"Probing {name}"):
            train, test = (
                _chosen(_extract(backbone, loader, where, cache), layers)
                for loader in labelled.loaders(network.evaluate)
            )
            curves[name] = {layer: found.accuracy for layer, found in probe_layers(train, test).items()}
        backbone.cpu()
    console.print(table(curves, labelled.told))
    first = next(iter(curves))
    best = max(curves[first], key=lambda layer: curves[first][layer])
    console.print(f"Best at layer {best}, {100 * curves[first][best]:.1f} %.")
    out = out or network.own_file("layers.json")
    if out is not None:
        write_json(out, {"command": typed, "network": network.name, "data": labelled.told, **curves})
        axis = IMAGEGPT_LAYERS if isinstance(network.backbone, ImageGPTBackbone) else BLOCKS
        title = f"{network.name if network.recipe is None else network.recipe.method} on {labelled.told}"
        draw_layers(curves, axis=axis, title=title).savefig(out.with_suffix(".png"), dpi=120)
        console.print(f"Written to {out}; the curves are in {out.with_suffix('.png')}.")
    return curves


def table(curves: Curves, source: str) -> Table:
    """One row for each layer, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {source}", title_justify="left", title_style="bold")
    shown.add_column("layer", justify="right")
    for name in curves:
        shown.add_column(name, justify="right")
    for layer in next(iter(curves.values())):
        shown.add_row(f"{layer}", *(f"{100 * curve[layer]:.1f}" for curve in curves.values()))
    return shown


def _extract(backbone: Backbone, loader: Loader, device: str, cache: Path | None) -> dict[int, Features]:
    if isinstance(backbone, ImageGPTBackbone):
        return extract_imagegpt_layers(backbone, loader, device=device, cache=cache)
    return extract_layers(backbone, loader, device=device, cache=cache)


def _chosen(features: dict[int, Features], layers: Sequence[str]) -> dict[int, Features]:
    if list(layers) == ["all"]:
        return features
    if unknown := [each for each in layers if each not in map(str, features)]:
        raise ValueError(f"there is no layer {unknown[0]}; there are {min(features)} to {max(features)}, or 'all'")
    return {int(each): features[int(each)] for each in layers}
