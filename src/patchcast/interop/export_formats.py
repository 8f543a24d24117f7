"""A run's encoder in the formats of other libraries: timm, transformers, ONNX and torch.export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchcast.backbones.tiled import Tiled
from patchcast.data.transforms import Normalize
from patchcast.files import write_weights
from patchcast.interop import save_imagegpt, save_mae
from patchcast.interop.graph import Difference, save_onnx, save_torch
from patchcast.interop.timm_weights import save_pretrained
from patchcast.methods import Method
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved


@dataclass(frozen=True)
class Exported:
    """What is exported: a run's pretrainer, recipe and method."""

    recipe: Resolved
    method: Method
    pretrainer: Pretrainer
    model_args: dict[str, Any]


def default_format(method: Method) -> str:
    """The library that a method's networks come from."""
    return "transformers" if method.codes == "colors" else "timm"


def is_exported(method: Method) -> bool:
    """Whether another library has this network: none has a masked ImageGPT."""
    return method.codes != "colors" or method.causal


def exported_as(method: Method) -> str:
    """The files of a finished run that hold its weights, as text."""
    if not is_exported(method):
        return "the weights (pretrainer.safetensors)"
    return f"the weights for {default_format(method)} (model.safetensors, config.json)"


def write_encoder(encoder: Exported, out: Path, *, to: str | None = None) -> None:
    """Write an encoder. For a tiled network, write the encoder of one tile, and the positions of tiles to another file.

    Args:
        to: one of `EXPORT_FORMATS`; None: the library that the network comes from.
    Raises:
        ValueError: if the network cannot be written in this format.
    """
    EXPORT_FORMATS[to or default_format(encoder.method)](encoder, out)


def _for_timm(source: Exported, out: Path) -> None:
    recipe = source.recipe
    if source.method.codes == "colors":
        raise ValueError(
            "timm has no ImageGPT; leave out --to to write it for transformers, or use --to onnx or --to torch"
        )
    encoder = source.pretrainer.backbone
    if isinstance(encoder, Tiled):
        positions = {
            name: weight for name, weight in encoder.model.state_dict().items() if not name.startswith("tile.")
        }
        write_weights(positions, out / "tiles.safetensors")
        encoder = encoder.tile
    save_pretrained(
        encoder.model,
        out,
        architecture=recipe.model,
        model_args=source.model_args,
        mean=recipe.mean,
        std=recipe.std,
        crop_mode=recipe.crop_mode,
    )


def _for_transformers(source: Exported, out: Path) -> None:
    if source.method.codes == "colors":
        save_imagegpt(source.pretrainer, out, squash=source.recipe.crop_mode == "squash")
    elif source.recipe.method == "mae":
        recipe = source.recipe
        squash = recipe.crop_mode == "squash"
        if not save_mae(source.pretrainer, out, mean=recipe.mean, std=recipe.std, squash=squash):
            print("This is the encoder, for ViTMAEModel: transformers has no decoder of this run's kind.")
    else:
        raise ValueError(f"transformers has MAE and ImageGPT only; for {source.recipe.method} use --to timm")


def _for_torch(source: Exported, out: Path) -> None:
    _say(save_torch(source.pretrainer.backbone, out / "model.pt2", trial_images(source.recipe)))


def _for_onnx(source: Exported, out: Path) -> None:
    _say(save_onnx(source.pretrainer.backbone, out / "model.onnx", trial_images(source.recipe)))


def _say(difference: Difference) -> None:
    print(f"Compared with the run's own network on 8 images: the largest difference is {difference}.")


EXPORT_FORMATS: dict[str, Callable[[Exported, Path], None]] = {
    "timm": _for_timm,
    "transformers": _for_transformers,
    "onnx": _for_onnx,
    "torch": _for_torch,
}


def trial_images(recipe: Resolved) -> list[Tensor]:
    """Trial images for a run's network, normalized as in the run."""
    return images_of_noise(recipe.channels, recipe.image_size, recipe.mean, recipe.std)


def images_of_noise(
    channels: int, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> list[Tensor]:
    """Batches of 1 and 3 images of noise, and of 1 and 3 with the spectrum of photographs, normalized.

    Photographs have amplitudes that fall as one over the frequency (Field 1987): large smooth parts, and edges of all
    sizes.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    noise = torch.randn(4, channels, height, width, generator=generator)
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency.clamp_min(1 / max(height, width)), (height, width))
    smooth = (0.5 + 0.2 * smooth / smooth.std(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    normalize = Normalize(mean, std)
    natural = torch.stack([normalize(image) for image in smooth])
    return [noise[:1], noise[1:], natural[:1], natural[1:]]
