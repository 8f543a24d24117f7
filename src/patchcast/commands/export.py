"""`patchcast export`: a run's encoder for timm, transformers, ONNX or torch.export, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from patchcast.interop.card import write_card
from patchcast.interop.export_formats import default_format, write_encoder
from patchcast.runs.results import encoder_of
from patchcast.runs.run import open_run


def export(run: Path, out: Path, *, to: str | None = None) -> None:
    """Write a run's encoder to a new folder, with a README.md that says what it is and how to load it.

    Args:
        to: one of `patchcast.interop.export_formats.EXPORT_FORMATS`; None: the library that the network comes from
            (transformers for an ImageGPT, else timm).
    Raises:
        ValueError: if the folder is not empty, or the format cannot hold the network; nothing is written then.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is not empty; choose another --out")
    with TemporaryDirectory() as made:
        write_folder(run, Path(made), to=to, where=f"local-dir:{out}")
        shutil.copytree(made, out, dirs_exist_ok=True)
    print(f"{out} holds {', '.join(sorted(file.name for file in out.iterdir()))}.")
    print("README.md says what it is and how to load it. It names no license yet: choose one there.")


def write_folder(run: Path, out: Path, *, to: str | None, where: str) -> None:
<<<<<<< HEAD
    """Write a run's encoder and its card into an empty folder; the card gives `where` as its place."""
    recipe, pretrainer = open_run(run)
    to = to or default_format(recipe)
    FORMATS[to](recipe, pretrainer, out)
    write_card(run, recipe, pretrainer, out, to=to, where=where)


def default_format(recipe: Resolved) -> str:
    """The library whose the network is."""
    return "transformers" if METHODS[recipe.method].codes == "colours" else "timm"


def is_exported(recipe: Resolved) -> bool:
    """Whether another library has a place for the network: for ImageGPT's masked one, none has."""
    method = METHODS[recipe.method]
    return method.codes != "colours" or method.causal


def exported_as(recipe: Resolved) -> str:
    """What of a finished run is for another library, in words."""
    if not is_exported(recipe):
        return "the weights (pretrainer.safetensors)"
    return f"the weights for {default_format(recipe)} (model.safetensors, config.json)"


def write_encoder(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    """Write the encoder for its library; of a tiled one, that of a tile, and beside it the positions of tiles."""
    FORMATS[default_format(recipe)](recipe, pretrainer, out)


def _for_timm(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    if METHODS[recipe.method].codes == "colours":
        raise ValueError(
            "timm has no ImageGPT; leave out --to, which writes it for transformers, or take onnx or torch"
        )
    encoder = pretrainer.backbone
    if isinstance(encoder, Tiled):
        positions = {name: each for name, each in encoder.model.state_dict().items() if not name.startswith("tile.")}
        out.mkdir(parents=True, exist_ok=True)
        save_file(positions, out / "tiles.safetensors")
        encoder = encoder.tile
    save_pretrained(
        encoder.model,
        out,
        architecture=recipe.model,
        model_args=timm_args(recipe),
        mean=recipe.mean,
        std=recipe.std,
        crop_mode=recipe.crop_mode,
    )


def _for_transformers(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    if METHODS[recipe.method].codes == "colours":
        save_imagegpt(pretrainer, out, squash=recipe.crop_mode == "squash")
    elif recipe.method == "mae":
        save_mae(pretrainer, out, mean=recipe.mean, std=recipe.std, squash=recipe.crop_mode == "squash")
    else:
        raise ValueError(f"transformers has a place for MAE and ImageGPT; for {recipe.method} take --to timm")


def _for_torch(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    _say(save_torch(pretrainer.backbone, out / "model.pt2", trial_images(recipe)))


def _for_onnx(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    _say(save_onnx(pretrainer.backbone, out / "model.onnx", trial_images(recipe)))


def _say(difference: Difference) -> None:
    print(f"Compared with the run's own network on 8 images: the greatest difference is {difference}.")


FORMATS: dict[str, Callable[[Resolved, Pretrainer, Path], None]] = {
    "timm": _for_timm,
    "transformers": _for_transformers,
    "onnx": _for_onnx,
    "torch": _for_torch,
}


def trial_images(recipe: Resolved) -> list[Tensor]:
    """Batches of 1 and 3 images of noise, and of 1 and 3 with the spectrum of photographs, normalised as the run's.

    Photographs have amplitudes that fall as one over the frequency (Field 1987): large smooth parts, and edges of all
    sizes.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = recipe.image_size
    noise = torch.randn(4, recipe.channels, height, width, generator=generator)
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency.clamp_min(1 / max(height, width)), (height, width))
    smooth = (0.5 + 0.2 * smooth / smooth.std(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    normalise = Normalise(recipe.mean, recipe.std)
    natural = torch.stack([normalise(each) for each in smooth])
    return [noise[:1], noise[1:], natural[:1], natural[1:]]
=======
    """Write a run's encoder and its card to an empty folder; the card says to load it from `where`."""
    encoder = encoder_of(open_run(run))
    to = to or default_format(encoder.method)
    write_encoder(encoder, out, to=to)
    write_card(run, encoder, out, to=to, where=where)
>>>>>>> main
