"""Draw the picture of docs/tiles.md: `python docs/draw_tiles.py` writes docs/images/tiles.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from patchcast.backbones import Grid, wrap
from patchcast.backbones.tiled import Tiled
from patchcast.data.tiles import FitTiles, stack
from patchcast.plans import MaskPlan, MultiBlock, Plan, RandomMask, RasterOrder, draw_each

SEEN, HIDDEN, PADDING = "#f2efe6", "#4a4a4a", "#ffffff"
TARGETS = ["#c44e52", "#4c72b0", "#55a868", "#dd8452"]


def colors(plan: Plan, is_valid: torch.Tensor) -> np.ndarray:
    found = np.tile(matplotlib.colors.to_rgb(HIDDEN), (plan.grid.units, 1))
    if isinstance(plan, MaskPlan):
        found[plan.visible[0].numpy()] = matplotlib.colors.to_rgb(SEEN)
        for group, color in zip(plan.hidden[0].numpy(), TARGETS, strict=False):
            found[group] = matplotlib.colors.to_rgb(color)
    else:
        turn = plan.rank[0].numpy() / max(1, int(is_valid.sum()) - 1)
        found = plt.get_cmap("viridis")(turn.clip(0, 1))[:, :3]
    found[~is_valid[0].numpy()] = matplotlib.colors.to_rgb(PADDING)
    return found.reshape(*plan.grid, 3)


def main() -> None:
    tile = (64, 64)
    backbone = Tiled(wrap("test_vit", img_size=64, patch_size=8), Grid(3, 4))
    down, right = torch.linspace(40, 255, 150)[:, None], torch.linspace(0, 255, 250)
    image = torch.stack([down.expand(-1, 250), right.expand(150, -1), 255 - down.expand(-1, 250)]).to(torch.uint8)
    fitted = FitTiles(tile, 12, mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    batch = stack([fitted])
    height, width = fitted.canvas.shape[-2:]
    is_valid, grid = backbone.valid_units(batch, backbone.grid(batch)), backbone.grid(batch)
    grids = backbone.grid_of_each(batch)
    assert grids is not None
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.7))
    shown = fitted.canvas.clone()
    shown[:, fitted.size[0] :], shown[:, :, fitted.size[1] :] = 1.0, 1.0
    axes[0].imshow(shown.permute(1, 2, 0), extent=(0, width, height, 0))
    axes[0].set_title(f"{image.shape[1]}x{image.shape[2]} on {height}x{width}")
    for axis, (name, planner) in zip(
        axes[1:], {"MAE": RandomMask(0.75), "I-JEPA": MultiBlock(), "AIM": RasterOrder()}.items(), strict=True
    ):
        plan = draw_each(planner, grids, grid, torch.Generator().manual_seed(0))
        axis.imshow(colors(plan, is_valid), extent=(0, width, height, 0))
        axis.set_title(name)
        axis.set_xticks(range(0, width, 8), minor=True)
        axis.set_yticks(range(0, height, 8), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.3)
    for axis in axes:
        axis.set_xticks(range(0, width + 1, 64), [])
        axis.set_yticks(range(0, height + 1, 64), [])
        axis.grid(which="major", color="black", linewidth=1.2)
        axis.tick_params(which="both", length=0)
    figure.tight_layout(pad=0.4)
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "tiles.png", dpi=90, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
