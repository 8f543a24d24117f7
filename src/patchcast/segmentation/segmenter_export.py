"""A fine-tuned segmenter as a graph; a file is kept only if it gives the segmenter's probabilities."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from patchcast.files import read_json, write_json
from patchcast.folder_files import CLASSES, SEGMENTER
from patchcast.interop.export_formats import images_of_noise
from patchcast.interop.graph import Graph, write_onnx, write_torch
from patchcast.segmentation.segmenter_card import write_exported_card
from patchcast.segmentation.segmenter_folder import open_segmenter

GRAPHS = {"onnx": (write_onnx, "model.onnx"), "torch": (write_torch, "model.pt2")}


class PixelProbabilities(nn.Module):
    """From normalized images to the probability of each class for every pixel, as the only output.

    >>> import torch
    >>> [probabilities] = PixelProbabilities(nn.Conv2d(3, 5, 1))(torch.zeros(2, 3, 8, 8))
    >>> torch.allclose(probabilities.sum(dim=1), torch.ones(2, 8, 8))
    True

    Args:
        model: from images to the logits of every pixel.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K H W"]]:
        return (self.model(images).softmax(dim=1),)


def export_segmenter(folder: Path, out: Path, *, to: str) -> str:
    """Write a segmenter to an empty folder, with its classes and its card; returns a sentence about the comparison.

    Args:
        to: onnx or torch.
    Raises:
        ValueError: if no other library has such a model in this format, or the file predicts otherwise.
    """
    if to not in GRAPHS:
        raise ValueError(
            f"{folder} holds a segmenter, and {to} has no class for a {_head(folder)} head over the layers of a timm "
            "model: use --to onnx or --to torch"
        )
    tuned = open_segmenter(folder)
    module = PixelProbabilities(tuned.model)
    graph = Graph(module, "the segmenter", ("probabilities",), tuned.channels, tuned.size, module)
    write, name = GRAPHS[to]
    difference = write(graph, out / name, images_of_noise(tuned.channels, tuned.size, tuned.mean, tuned.std))
    about = {
        "input_size": [tuned.channels, *tuned.size],
        "mean": list(tuned.mean),
        "std": list(tuned.std),
        "tiled": tuned.tiled,
    }
    write_json(out / "preprocessing.json", about)
    write_json(out / CLASSES, tuned.names)
    if (folder / "README.md").exists():  # folders of earlier versions have none
        write_exported_card(folder / "README.md", out, to=to, channels=tuned.channels, tiled=tuned.tiled)
    return f"Compared with the segmenter on 8 images: the largest difference is {difference}."


def _head(folder: Path) -> str:
    return str(read_json(folder / SEGMENTER)["head"])
