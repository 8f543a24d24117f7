"""`patchcast probe --layers`: which layers have the best features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from patchcast import options
from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.evaluation.features import Features, Loader, extract_layers
from patchcast.evaluation.layer_probe import BLOCKS, IMAGEGPT_LAYERS, draw_layers, extract_imagegpt_layers, probe_layers
from patchcast.evaluation.protocol import Protocol, Request, Subject, new_table
from patchcast.files import write_figure

LayerCurve = dict[int, float]


class LayerProtocol(Protocol[LayerCurve]):
    """The linear probe of each layer's features: accuracy by layer, as a share."""

    file = "layers"

    def __init__(self, options: options.Layers, request: Request, subject: Subject) -> None:
        self.layers, self.request = options.layers, request
        self.cache = request.cache if options.cache else None
        self.labeled = request.labeled()
        self.description = self.labeled.description
        self.axis = IMAGEGPT_LAYERS if isinstance(subject.backbone, ImageGPTBackbone) else BLOCKS

    def measure(self, subject: Subject) -> LayerCurve:
        train, test = (
            choose_layers(self._extract(subject, loader), self.layers)
            for loader in self.labeled.loaders(subject.evaluate)
        )
        return {layer: result.accuracy for layer, result in probe_layers(train, test).items()}

    def _extract(self, subject: Subject, loader: Loader) -> dict[int, Features]:
        backbone, device = subject.backbone, self.request.device
        if isinstance(backbone, ImageGPTBackbone):
            return extract_imagegpt_layers(backbone, loader, device=device, cache=self.cache)
        return extract_layers(backbone, loader, device=device, cache=self.cache)

    def tables(self, results: Mapping[str, LayerCurve]) -> list[Table]:
        table = new_table(self.description, "layer", *results)
        every = sorted({layer for curve in results.values() for layer in curve})
        for layer in every:
            cells = (f"{100 * curve[layer]:.1f}" if layer in curve else "" for curve in results.values())
            table.add_row(f"{layer}", *cells)
        return [table]

    def record(self, results: Mapping[str, LayerCurve]) -> dict[str, Any]:
        return {**results}

    def comparisons(self, results: Mapping[str, LayerCurve]) -> list[str]:
        name, curve = next(iter(results.items()))
        best = max(curve, key=lambda layer: curve[layer])
        return [f"Best layer of {name}: {best}, {100 * curve[best]:.1f} %."]

    def save_pictures(self, results: Mapping[str, LayerCurve], out: Path) -> list[Path]:
        picture = out.with_suffix(".png")
        write_figure(draw_layers(results, axis=self.axis, title=f"Linear probe on {self.description}"), picture)
        return [picture]


def choose_layers(features: dict[int, Features], layers: Sequence[str]) -> dict[int, Features]:
    """The features of these layers.

    Raises:
        ValueError: if there is no such layer.
    """
    if list(layers) == ["all"]:
        return features
    if unknown := [layer for layer in layers if layer not in map(str, features)]:
        raise ValueError(f"there is no layer {unknown[0]}; there are {min(features)} to {max(features)}, or 'all'")
    return {int(layer): features[int(layer)] for layer in layers}
