"""`patchcast demo`: pretrain and probe on the digits of scikit-learn."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from patchcast import options
from patchcast.commands.pretrain import pretrain
from patchcast.commands.probe import probe
from patchcast.recipe import Recipe


def demo_recipe(out: Path) -> Recipe:
    """A small ViT on 1,437 digits of 8x8 pixels, in patches of 2x2."""
    return Recipe(
        method="mae",
        model="vit_tiny_patch16_224",
        data="digits",
        out=out,
        model_args={"depth": 6, "embed_dim": 96, "num_heads": 3},
        # Four pixels are too few for normalization, and digits are too small to crop much.
        method_args={"decoder_width": 64, "decoder_depth": 2, "normalize": False},
        crop_scale=(0.7, 1.0),
        steps=900,
        batch_size=128,
        lr=2e-3,
    )


def demo(out: Path) -> None:
    """Pretrain on digits without their labels, then probe with few of them."""
    recipe = pretrain(demo_recipe(out))
    Console().print()
    probe(options.ProbeOptions(source=str(recipe.out)), "features", options.FeatureOptions())
    Console().print(
        f"\nLook at {out / 'reconstructions.png'} and {out / 'loss.png'}. Then your own images:\n"
        "[bold]patchcast pretrain --method mae --model vit_tiny_patch16_224 --data FOLDER --out runs/mine[/]"
    )
