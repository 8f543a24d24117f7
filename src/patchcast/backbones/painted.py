"""Any other timm model: hidden units are painted over in the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone, ImageBatch, Tokens
from patchcast.backbones.conventions import channels_of, nominal_size, on_meta
from patchcast.geometry import Grid


class Painted(Backbone):
    """A model that is not split, such as ConvNeXt or ResNet. It can only "paint", which leaks nothing.

    Width, stride and layout are derived from the shape of its features on the meta device, where nothing is computed.

    >>> import timm
    >>> backbone = Painted(timm.create_model("test_convnext"))
    >>> backbone.units(torch.zeros(1, 3, 160, 160)).shape, sorted(backbone.can)
    (torch.Size([1, 25, 64]), ['paint'])

    Args:
        model: anything whose `forward_features` returns a map (B, D, H, W), or (B, H, W, D) if it declares so as
            `output_fmt`, or one row per unit; or a list of these, of which the last is used.
    Raises:
        ValueError: if its units do not divide the image; another `image_size` may help.
    """

    pixels_stay_in_unit = False

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(model)
        self.channels = channels_of(model)
        self.image_size = height, width = image_size or nominal_size(model)
        features = self.features_of((height, width))
        shape = last(features).shape
        if len(shape) == 3:
            channels_first = shape[1] == self.model.num_features or not isinstance(features, Tensor)
            self.features_layout = "NCHW" if channels_first else "NLC"
            self.width, count = shape[1:] if channels_first else shape[:0:-1]
            rows = round((count * height / width) ** 0.5)
            grid = Grid(rows, count // rows)
        elif getattr(model, "output_fmt", "NCHW") == "NHWC":
            self.features_layout, self.width, grid = "NHWC", shape[3], Grid(shape[1], shape[2])
        else:
            self.features_layout, self.width, grid = "NCHW", shape[1], Grid(shape[2], shape[3])
        self.embed_width = self.width
        if height % grid.rows or width % grid.cols:
            raise ValueError(
                f"{self.name} makes {grid} units of {height}x{width}, which do not divide it; give another img_size"
            )
        self.stride = (height // grid.rows, width // grid.cols)
        if len(shape) == 4:  # without padding, or with a fixed number of units, twice the image is not twice the units
            try:
                self.takes_any_size = last(self.features_of((2 * height, width))).numel() == 2 * shape.numel()
            except (AssertionError, RuntimeError):
                self.takes_any_size = False

    def to_patches(self, images: ImageBatch) -> Tokens:
        return Tokens(images, self.grid(images), layout="NCHW")

    def run_stages(self, tokens: Tokens) -> Any:
        return self.model.forward_features(tokens.x)

    def unused(self) -> list[str]:
        """Determined by differentiation, because every class has another name for its head."""
        parameters = {
            name: torch.empty_like(parameter, device="meta", requires_grad=True)
            for name, parameter in self.model.named_parameters()
        }
        with torch.enable_grad():
            total = last(self.features_of(self.image_size, parameters)).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]

    def features_of(self, size: tuple[int, int], parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Features of images of this size, on the meta device."""
        inside = {f"model.{name}": parameter for name, parameter in (parameters or {}).items()}
        return on_meta(FeatureMap(self.model), self.channels, size, inside)

    def split(self, features: Any, tokens: Tokens) -> tuple[Float[Tensor, "B R D"], Float[Tensor, "B V D"]]:
        x = last(features)
        if self.features_layout == "NCHW" and x.ndim == 3:
            x = x.unflatten(2, tokens.grid)
        return super().split(x, tokens)


class FeatureMap(nn.Module):
    """A model whose `forward` is its `forward_features`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Float[Tensor, "B C H W"]) -> Any:
        return self.model.forward_features(images)


def last(features: Any) -> Tensor:
    """The features, or the last of several."""
    return features if isinstance(features, Tensor) else features[-1]
