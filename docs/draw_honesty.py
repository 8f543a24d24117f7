"""Draw the pictures of docs/honesty.md: `python docs/draw_honesty.py` writes docs/images/honesty-*.png."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from patchcast.backbones import wrap
from patchcast.drawing.figures import draw_dependencies
from patchcast.honesty import dependencies, perturbed
from patchcast.methods import aim
from patchcast.plans import OrderPlan


class InvertedMask(OrderPlan):
    """True taken to mean "must not look"; each token sees itself, so that no row is empty."""

    def can_see(self, prefix_tokens: int) -> Tensor:
        return ~super().can_see(prefix_tokens) | torch.eye(prefix_tokens + self.grid.units, dtype=torch.bool)


class Unshifted(OrderPlan):
    """The output at a unit compared with that same unit."""

    @property
    def predict(self) -> Tensor:
        return self.source


PLANS = {"honest": OrderPlan, "inverted-mask": InvertedMask, "unshifted": Unshifted}


def main() -> None:
    torch.manual_seed(0)
    pretrainer = perturbed(aim(wrap("test_vit", img_size=48, patch_size=8), head_depth=1))
    grid = pretrainer.backbone.grid((48, 48))
    order, prefix = torch.arange(grid.units)[None], torch.tensor([9])
    for name, plan in PLANS.items():
        found, allowed = dependencies(pretrainer, torch.randn(1, 3, 48, 48), plan(grid, order, prefix))
        figure = draw_dependencies(found, allowed, title=name.replace("-", " "))
        figure.savefig(Path(__file__).parent / "images" / f"honesty-{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
