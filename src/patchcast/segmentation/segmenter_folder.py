"""The folder of a fine-tuned segmenter, and the class of every pixel of an image of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones import wrap
from patchcast.data.transforms import ImagePixels, Normalize, resize
from patchcast.files import read_weights, write_text, write_weights
from patchcast.folder_files import SEGMENTER
from patchcast.modes import evaluating
from patchcast.runs.network import Network
from patchcast.runs.timm_arguments import timm_args
from patchcast.segmentation.masked_data import padded, places_of_tiles
from patchcast.segmentation.segmenter import Segmenter

SEGMENTER_WEIGHTS = "model.safetensors"
TILES_AT_ONCE = 8


@dataclass(frozen=True)
class FineTunedSegmenter:
    """A segmenter from its folder.

    Attributes:
        names: of the classes, by number.
        size: (height, width) of the network's images.
        tiled: large images are cut into tiles of that size; otherwise they are resized to it.
    """

    model: nn.Module
    names: list[str]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tiled: bool = False

    def probabilities(self, image: ImagePixels, device: str = "cpu") -> Float[Tensor, "K H W"]:
        """Of each class, for every pixel of an image of any size."""
        normalize, (rows, cols) = Normalize(self.mean, self.std), image.shape[-2:]
        if not self.tiled:
            [logits] = self._logits(normalize(resize(image, self.size))[None], device)
            return F.interpolate(logits.softmax(dim=0)[None], (rows, cols), mode="bilinear")[0]
        height, width = self.size
        pixels = normalize(padded(image, torch.zeros(rows, cols, dtype=torch.int64), self.size)[0])
        total = torch.zeros(len(self.names), *pixels.shape[-2:])
        places = list(places_of_tiles((pixels.shape[-2], pixels.shape[-1]), self.size))
        for few in _by(places, TILES_AT_ONCE):
            tiles = torch.stack([pixels[:, top : top + height, left : left + width] for top, left in few])
            for (top, left), logits in zip(few, self._logits(tiles, device), strict=True):
                total[:, top : top + height, left : left + width] += logits.softmax(dim=0)
        return (total / total.sum(dim=0, keepdim=True))[:, :rows, :cols]

    def _logits(self, images: Tensor, device: str) -> Float[Tensor, "B K H W"]:
        with evaluating(self.model):
            logits: Tensor = self.model(images.to(device)).float().cpu()
        return logits


def is_segmenter(source: str | Path) -> bool:
    """Whether this is the folder of a segmenter."""
    return (Path(source) / SEGMENTER).exists()


def save_segmenter(tuned: FineTunedSegmenter, network: Network, out: Path, *, head: str, layers: Sequence[int]) -> None:
    """Write `model.safetensors` and `segmenter.json`, and compare the segmenter that is opened from them.

    Raises:
        ValueError: if it does not give the probabilities of this one.
    """
    if network.run is not None:
        architecture, arguments = network.run.recipe.model, timm_args(network.run.recipe)
    else:
        config: Any = network.backbone.model.pretrained_cfg
        architecture = network.architecture or config["architecture"]
        arguments = {**network.model_args, "in_chans": tuned.channels}
        if config.get("fixed_input_size"):
            arguments["img_size"] = list(tuned.size)
    described = {
        "architecture": architecture.partition(".")[0],
        "model_args": arguments,
        "head": head,
        "layers": list(layers),
        "classes": tuned.names,
        "channels": tuned.channels,
        "size": list(tuned.size),
        "mean": list(tuned.mean),
        "std": list(tuned.std),
        "tiled": tuned.tiled,
    }
    write_weights(
        {name: value.detach().cpu().contiguous() for name, value in tuned.model.state_dict().items()},
        out / SEGMENTER_WEIGHTS,
    )
    write_text(out / SEGMENTER, json.dumps(described, indent=2) + "\n")
    image = torch.randint(
        256, (tuned.channels, *tuned.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tuned.model.cpu()
    difference = float((open_segmenter(out).probabilities(image) - tuned.probabilities(image)).abs().max())
    if not difference <= 1e-4:
        raise ValueError(
            f"the segmenter that opens from {out} predicts otherwise: probabilities differ by {difference:.2g}"
        )


def open_segmenter(folder: str | Path) -> FineTunedSegmenter:
    """A segmenter from its folder, in eval mode.

    Raises:
        ValueError: in one sentence, if the folder holds none, or a file of it is missing or broken.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / SEGMENTER).read_text(encoding="utf-8"))
        backbone = wrap(described["architecture"], **described["model_args"])
        model = Segmenter(backbone, len(described["classes"]), head=described["head"], layers=described["layers"])
        model.load_state_dict(read_weights(folder / SEGMENTER_WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise ValueError(f"{folder} holds no segmenter that can be read: {reason}") from problem
    (height, width), mean, std = described["size"], tuple(described["mean"]), tuple(described["std"])
    return FineTunedSegmenter(
        model.eval(), described["classes"], described["channels"], (height, width), mean, std, described["tiled"]
    )


def _by(places: Sequence[tuple[int, int]], count: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (places[first : first + count] for first in range(0, len(places), count))
