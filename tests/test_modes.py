"""What looks at a network leaves it in the mode that it was in: each part of it, also one frozen in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import patchcast
from patchcast.interop import graph

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _aim() -> patchcast.Pretrainer:
    return patchcast.aim(patchcast.wrap("test_vit", img_size=32, patch_size=16), head_depth=1, normalize=False)


LOOKS: dict[str, Callable[[patchcast.Pretrainer, Path], object]] = {
    "no_leak": lambda one, _: patchcast.no_leak(one, IMAGES, one.draw(IMAGES), limit=1),
    "dependencies": lambda one, _: patchcast.dependencies(one, IMAGES, one.draw(IMAGES)),
    "reconstruct": lambda one, _: patchcast.reconstruct(one, IMAGES, one.draw(IMAGES)),
    "complete_pixels": lambda one, _: patchcast.complete_pixels(one, IMAGES, prefix=2),
    "save_torch": lambda one, folder: graph.save_torch(one.backbone, folder / "x.pt2", [IMAGES]),
    "extract": lambda one, _: patchcast.extract(one.backbone, [(IMAGES, torch.zeros(2, dtype=torch.long))]),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_at_a_network_leaves_its_mode(look: str, tmp_path: Path) -> None:
    pretrainer = _aim().train()
    next(pretrainer.backbone.model.blocks.children()).eval()  # frozen by the user
    before = [part.training for part in pretrainer.modules()]
    LOOKS[look](pretrainer, tmp_path)
    assert [part.training for part in pretrainer.modules()] == before


@pytest.mark.parametrize("look", ["no_leak", "dependencies", "reconstruct", "complete_pixels"])
def test_also_when_it_fails(look: str, tmp_path: Path) -> None:
    pretrainer = _aim().train()

    def fail(*_: object) -> None:
        raise RuntimeError("a failure inside")

    pretrainer.backbone.model.blocks[0].norm1.register_forward_pre_hook(fail)  # also called where keys are cached
    with pytest.raises(RuntimeError, match="a failure inside"):
        LOOKS[look](pretrainer, tmp_path)
    assert pretrainer.training
    assert pretrainer.backbone.model.training
