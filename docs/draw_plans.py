"""Draw the pictures of docs/plans.md: `python docs/draw_plans.py` writes docs/images/plan-*.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from patchcast.backbones import Grid
from patchcast.plans import BlockMask, GridMask, InverseBlockMask, MaskPlan, MultiBlock, Planner, RandomMask

PICTURES: dict[str, tuple[Planner, Grid]] = {
    "random": (RandomMask(0.75), Grid(14, 14)),
    "grid": (GridMask(0.6, cell=2), Grid(14, 14)),
    "block": (BlockMask(0.4), Grid(14, 14)),
    "inverse-block": (InverseBlockMask(0.65), Grid(14, 14)),
    "multi-block": (MultiBlock(), Grid(14, 14)),
    "multi-block-wide": (MultiBlock(), Grid(8, 24)),
}
IMAGES = 5
SEEN, NEITHER = "#f2efe6", "#4a4a4a"
GROUPS = ["#c44e52", "#4c72b0", "#55a868", "#dd8452"]


def picture(plan: MaskPlan, image: int) -> np.ndarray:
    """Colors of the units of one image; where groups overlap, their mean."""
    units = plan.grid.units
    colors = np.tile(matplotlib.colors.to_rgb(NEITHER), (units, 1))
    colors[plan.visible[image].numpy()] = matplotlib.colors.to_rgb(SEEN)
    asked, total = np.zeros((units, 1)), np.zeros((units, 3))
    for group, color in zip(plan.predict[image].numpy(), GROUPS, strict=False):
        asked[group] += 1
        total[group] += matplotlib.colors.to_rgb(color)
    colors = np.where(asked > 0, total / np.maximum(asked, 1), colors)
    return colors.reshape(plan.grid.rows, plan.grid.cols, 3)


def main() -> None:
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    for name, (planner, grid) in PICTURES.items():
        plan = planner(grid, IMAGES, torch.Generator().manual_seed(0))
        assert isinstance(plan, MaskPlan)
        height = 1.6 * grid.rows / grid.cols
        figure, axes = plt.subplots(1, IMAGES, figsize=(1.7 * IMAGES, height + 0.1))
        for image, axis in enumerate(axes):
            axis.imshow(picture(plan, image), extent=(0, grid.cols, grid.rows, 0))
            axis.set_xticks(range(grid.cols + 1))
            axis.set_yticks(range(grid.rows + 1))
            axis.grid(color="white", linewidth=0.4)
            axis.tick_params(length=0, labelbottom=False, labelleft=False)
        figure.tight_layout(pad=0.3)
        figure.savefig(folder / f"plan-{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
