"""`patchcast export`: a run's encoder as timm loads it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from patchcast.backbones import Backbone
from patchcast.backbones.tiled import Tiled
from patchcast.commands.build import timm_args
from patchcast.commands.folder import open_run
from patchcast.interop.timm import save_pretrained
from patchcast.recipe import Resolved


def export(run: Path, out: Path) -> None:
    """Write the encoder of a run to a folder that `timm.create_model("local-dir:...", pretrained=True)` reads."""
    recipe, pretrainer = open_run(run)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another --out")
    write_encoder(recipe, pretrainer.backbone, out)
    print(f'Load it with timm.create_model("local-dir:{out}", pretrained=True, num_classes=0), or by its keys with')
    print(f'timm.create_model("{recipe.model}", **{timm_args(recipe)}).load_state_dict(...).')


def write_encoder(recipe: Resolved, backbone: Backbone, out: Path) -> None:
    """Write the encoder for timm; of a tiled one, that of a tile, and beside it the positions of tiles."""
    encoder = backbone
    if isinstance(backbone, Tiled):
        encoder = backbone.tile
        positions = {name: each for name, each in backbone.model.state_dict().items() if not name.startswith("tile.")}
        out.mkdir(parents=True, exist_ok=True)
        save_file(positions, out / "tiles.safetensors")
    save_pretrained(
        encoder.model, out, architecture=recipe.model, model_args=timm_args(recipe), mean=recipe.mean, std=recipe.std
    )
