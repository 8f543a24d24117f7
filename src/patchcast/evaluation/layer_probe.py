"""Linear probes of each layer: ImageGPT's best features are in the middle of the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patchcast.backbones.backbone import ImageBatch
from patchcast.backbones.imagegpt_network import ImageGPTBackbone
from patchcast.evaluation.features import Features, Loader, run_over
from patchcast.evaluation.linear import LinearResult, linear_probe

IMAGEGPT_LAYERS = "layer whose attention sees the feature (the last: the network's output)"
BLOCKS = "block whose output is the feature"


def extract_imagegpt_layers(
    backbone: ImageGPTBackbone,
    loader: Loader,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    cache: Path | None = None,
) -> dict[int, Features]:
    """The paper's features of every layer, in one pass (Chen et al. 2020, section 2.2).

    Layer l is the input of block l's attention, after its norm, averaged over positions; the last layer is the
    network's output. They differ from the raw block outputs that `extract_layers` uses for other backbones.

    >>> from patchcast.geometry import Grid
    >>> from patchcast.backbones.imagegpt_network import ImageGPT
    >>> from patchcast.tokenizers.palette import Palette
    >>> network = ImageGPT(Grid(4, 4), 2, depth=3, width=8, heads=2)
    >>> backbone = ImageGPTBackbone(network, Palette(torch.tensor([[-1.0], [1.0]])), channels=1)
    >>> layers = extract_imagegpt_layers(backbone, [(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))])
    >>> {layer: tuple(features.x.shape) for layer, features in layers.items()}
    {0: (2, 8), 1: (2, 8), 2: (2, 8), 3: (2, 8)}

    Args:
        loader: yields batches of (images, labels), with images as the tokenizer takes them.
        device: where the backbone runs, and where it stays. Features are returned on the CPU, as float32.
        precision: dtype of autocast (torch.bfloat16); None computes in the weights' own.
        cache: folder for cached features, as in `extract`.
    Raises:
        ValueError: if the loader is empty.
    """

    def compute(images: ImageBatch) -> dict[str, torch.Tensor]:
        return {f"{layer}": x.float().mean(dim=1) for layer, x in enumerate(backbone.layers(images))}

    outputs, labels = run_over(backbone, loader, "imagegpt layers", compute, device, precision, cache)
    return {int(layer): Features(x, labels) for layer, x in sorted(outputs.items(), key=lambda item: int(item[0]))}


def probe_layers(train: Mapping[int, Features], test: Mapping[int, Features]) -> dict[int, LinearResult]:
    """The linear probe of each layer: logistic regression, with its strength chosen on held-out training images.

    For a wider feature, concatenate several layers around the best one, as the paper does with five for its largest
    model, and pass them to `linear_probe`.
    """
    return {layer: linear_probe(features, test[layer]) for layer, features in train.items()}


def draw_layers(curves: Mapping[str, Mapping[int, float]], *, axis: str = IMAGEGPT_LAYERS, title: str = "") -> Figure:
    """Linear-probe accuracy by layer, as in figure 2 of the paper: a curve for each network.

    Args:
        curves: by name, accuracies in [0, 1] by layer.
        axis: the axis label: `IMAGEGPT_LAYERS`, or `BLOCKS` for `extract_layers`.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    plot = figure.subplots()
    for name, curve in curves.items():
        plot.plot(list(curve), [100 * accuracy for accuracy in curve.values()], marker="o", markersize=3, label=name)
    plot.set_xlabel(axis)
    plot.set_ylabel("linear-probe accuracy (%)")
    plot.set_title(title)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False)
    return figure
