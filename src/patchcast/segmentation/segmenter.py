"""A network of timm with a head that gives the class of every pixel."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones import Backbone
from patchcast.modes import evaluating

SegmentHead = Literal["linear", "conv"]
CONV_LAYERS, CONV_WIDTH = 4, 128


class Segmenter(nn.Module):
    """From normalized images to the logits of every pixel.

    >>> from patchcast.backbones import wrap
    >>> model = Segmenter(wrap("test_vit", img_size=32), classes=3, head="conv").eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape, len(model.layers)
    (torch.Size([2, 3, 32, 32]), 4)

    Args:
        backbone: of a timm model that has `forward_intermediates`; its model is copied.
        head: "linear" classifies each unit of the last layer, "conv" has 3x3 convolutions over four layers.
        layers: numbers of the blocks or stages whose outputs the head sees. Default: by the head.
        seed: of the head's weights.
    Raises:
        ValueError: if timm gives the model no intermediate features.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        head: SegmentHead = "linear",
        layers: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(getattr(backbone.model, "forward_intermediates", None)):  # timm's convention
            raise ValueError(f"--task segmentation needs intermediate features, and timm gives {backbone.name} none")
        self.model: Any = copy.deepcopy(backbone.model)
        self.is_frozen = False
        images = torch.zeros(1, backbone.channels, *backbone.image_size)
        self.layers: list[int] | None = None if layers is None else list(layers)
        with evaluating(self.model):
            maps = self.maps(images)
        if self.layers is None:
            count = len(maps)
            wanted = 1 if head == "linear" else min(CONV_LAYERS, count)
            self.layers = [round((place + 1) * count / wanted) - 1 for place in range(wanted)]
            maps = [maps[place] for place in self.layers]
        widths = [one.shape[1] for one in maps]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = LinearOnUnits(widths, classes) if head == "linear" else ConvHead(widths, classes)
        self.model.requires_grad_(True)
        unused = backbone.unused()  # modules or parameters; some backbones differentiate to know
        for name, parameter in self.model.named_parameters():
            if any(name == part or name.startswith(f"{part}.") for part in unused):
                parameter.requires_grad_(False)

    def maps(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The outputs of the chosen layers."""
        return list(
            self.model.forward_intermediates(
                images, indices=self.layers, norm=False, intermediates_only=True, output_fmt="NCHW"
            )
        )

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        logits = self.head(self.maps(images))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")

    def freeze(self) -> None:
        """Leave only the head trainable."""
        self.is_frozen = True
        self.model.requires_grad_(False)

    def train(self, mode: bool = True) -> Segmenter:
        """A frozen network has no dropout, and no statistics of batches to follow."""
        super().train(mode)
        self.model.train(mode and not self.is_frozen)
        return self


class LinearOnUnits(nn.Module):
    """Batch norm and a linear classifier on each unit, as in DINOv2's linear segmentation (Oquab et al. 2023)."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(widths))
        self.classify = nn.Conv2d(sum(widths), classes, 1)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B K h w"]:
        return self.classify(self.norm(_together(maps)))


class ConvHead(nn.Module):
    """Layers projected to one width, and two 3x3 convolutions, each before an enlargement by two."""

    def __init__(self, widths: Sequence[int], classes: int, width: int = CONV_WIDTH) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Sequential(nn.Conv2d(one, width, 1), nn.GroupNorm(1, width)) for one in widths)
        self.mix = _convolution(width * len(widths), width)
        self.refine = _convolution(width, width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B K H W"]:
        x = self.mix(_together([project(one) for project, one in zip(self.project, maps, strict=True)]))
        x = self.refine(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return self.classify(F.interpolate(x, scale_factor=2, mode="bilinear"))


def _convolution(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.GroupNorm(1, out), nn.GELU())


def _together(maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B E h w"]:
    """All on the grid of the finest map."""
    size = max((one.shape[-2:] for one in maps), key=lambda shape: shape[0] * shape[1])
    return torch.cat([F.interpolate(one, size, mode="bilinear") for one in maps], dim=1)
