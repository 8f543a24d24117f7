"""The folder of a fine-tuned classifier: a model of timm with its classes, and how images are prepared for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from patchcast.data import Evaluate
from patchcast.files import write_text
from patchcast.folder_files import CLASSES
from patchcast.interop.timm_weights import save_pretrained
from patchcast.modes import evaluating
from patchcast.runs.build import timm_args
from patchcast.runs.network import Network

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class FineTuned:
    """A classifier from its folder.

    Attributes:
        names: of the classes, one for each logit.
        evaluate: how an image becomes what the model sees.
        channels: of the images.
        mean, std: of each channel, white being 1.
        is_multi_label: an image may be of any number of classes.
    """

    model: nn.Module
    names: list[str]
    evaluate: Evaluate
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_multi_label: bool = False

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, in double precision."""
        return logits.double().sigmoid() if self.is_multi_label else logits.double().softmax(dim=1)


def is_fine_tuned(source: str | Path) -> bool:
    """Whether this is the folder of a classifier."""
    return (Path(source) / CLASSES).exists()


def save_classifier(
    model: nn.Module, network: Network, names: list[str], out: Path, *, is_multi_label: bool = False
) -> None:
    """Write `model.safetensors`, `config.json` and `classes.json`, and compare the model that timm loads from them.

    Raises:
        ValueError: if timm's model does not give the logits of this one.
    """
    config: Any = network.backbone.model.pretrained_cfg
    if network.run is not None:
        arguments = timm_args(network.run.recipe)
        architecture = network.run.recipe.model
    else:
        arguments = {"in_chans": network.backbone.channels}
        architecture = config["architecture"]
        if config.get("fixed_input_size"):
            arguments["img_size"] = list(network.size)
    save_pretrained(
        model,
        out,
        architecture=architecture.partition(".")[0],
        model_args=arguments,
        mean=network.mean,
        std=network.std,
        crop_mode="squash" if network.evaluate.squash else "center",
        image_size=network.size,
        label_names=names,
    )
    listed = {"names": names, "multi_label": True} if is_multi_label else names
    write_text(out / CLASSES, json.dumps(listed, indent=2) + "\n")
    images = torch.randn(2, network.backbone.channels, *network.size, generator=torch.Generator().manual_seed(0))
    loaded = open_classifier(out).model
    ours = model.cpu()
    with evaluating(loaded), evaluating(ours):
        expected, found = ours(images), loaded(images)
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
    if difference > 1e-3:
        raise ValueError(
            f"timm loads another model from {out}: its logits differ by {difference:.2g} of the largest one; "
            f"{type(model).__name__} is not fine-tuned by this command"
        )


def open_classifier(folder: str | Path) -> FineTuned:
    """A classifier from its folder, in eval mode.

    Raises:
        ValueError: in one sentence, if the folder holds none, or a file of it is missing or broken.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} has no {WEIGHTS}: fine-tuning has not finished there")
    try:
        listed = json.loads((folder / CLASSES).read_text())
        is_multi_label = isinstance(listed, dict) and bool(listed["multi_label"])
        names = listed["names"] if isinstance(listed, dict) else listed
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise ValueError(f"{folder} holds no classifier that can be read: {reason}") from problem
    if len(names) != model.num_classes:
        raise ValueError(f"{folder} names {len(names)} classes, and its model has {model.num_classes}")
    channels, height, width = config["input_size"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    evaluate = Evaluate((height, width), mean, std, squash=config.get("crop_mode") == "squash")
    return FineTuned(model.eval(), names, evaluate, channels, mean, std, is_multi_label)
