"""`patchcast export`: a run's encoder as timm loads it, or an ImageGPT as transformers does."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from patchcast.backbones.tiled import Tiled
from patchcast.commands.build import timm_args
from patchcast.commands.folder import open_run
from patchcast.interop import save_imagegpt
from patchcast.interop.timm import save_pretrained
from patchcast.methods import METHODS
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Resolved


def export(run: Path, out: Path) -> None:
    """Write the encoder of a run to a folder that `timm.create_model("local-dir:...", pretrained=True)` reads.

    An ImageGPT is written for transformers.

    Raises:
        ValueError: if the folder is not empty, or nothing else has a place for the network.
    """
    recipe, pretrainer = open_run(run)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another --out")
    write_encoder(recipe, pretrainer, out)
    if METHODS[recipe.method].codes == "colours":
        print(f'Load it with transformers.ImageGPTForCausalImageModeling.from_pretrained("{out}"), or with')
        print(f'patchcast.interop.load_imagegpt("{out}").')
        return
    print(f'Load it with timm.create_model("local-dir:{out}", pretrained=True, num_classes=0), or by its keys with')
    print(f'timm.create_model("{recipe.model}", **{timm_args(recipe)}).load_state_dict(...).')


def is_exported(recipe: Resolved) -> bool:
    """Whether another library has a place for the network: for ImageGPT's masked one, none has."""
    method = METHODS[recipe.method]
    return method.codes != "colours" or method.causal


def exported_as(recipe: Resolved) -> str:
    """What of a finished run is for another library, in words."""
    if not is_exported(recipe):
        return "the weights (pretrainer.safetensors)"
    library = "transformers" if METHODS[recipe.method].causal else "timm"
    return f"the weights for {library} (model.safetensors, config.json)"


def write_encoder(recipe: Resolved, pretrainer: Pretrainer, out: Path) -> None:
    """Write the encoder for its library; of a tiled one, that of a tile, and beside it the positions of tiles."""
    if METHODS[recipe.method].codes == "colours":
        save_imagegpt(pretrainer, out)
        return
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
    )
