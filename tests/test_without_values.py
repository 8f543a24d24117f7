"""No method on any backbone reads a value from its device, in training, evaluation, drawing or a probe's training."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.models import VisionTransformer, swin_t

from patchcast import methods as patchcast_methods
from patchcast.backbones import Backbone, CannotError, wrap
from patchcast.backbones.readout import READOUTS
from patchcast.drawing.completion import complete_pixels
from patchcast.drawing.generation import complete, sample
from patchcast.evaluation.attentive import AttentiveProbe
from patchcast.pretrainer import Pretrainer
from tests import methods
from tests.backbones import zoo
from tests.contracts import images_for
from tests.imagegpt import parts
from tests.tiles.parts import canvas_of, tiled
from tests.without_values import Waits, forward_on_fake_cuda, step_on_meta

OTHERS: dict[str, Callable[[], Backbone]] = {
    "tiles": lambda: tiled("rotary"),
    "tiles, relative": lambda: tiled("relative"),
    "torchvision's ViT": lambda: wrap(VisionTransformer(32, 16, num_layers=1, num_heads=3, hidden_dim=48, mlp_dim=48)),
    "torchvision's Swin": lambda: wrap(swin_t(), img_size=(64, 96)),
    "painted": lambda: wrap("test_convnext", img_size=(64, 96)),
}
"""Backbones that are not in the zoo."""
QUICK = [
    (step_on_meta, "mae", "vit_tiny_patch16_224"),
    (step_on_meta, "aim", "eva02_tiny_patch14_224"),
    (step_on_meta, "aim, causal", "beit_base_patch16_224"),
    (step_on_meta, "ijepa", "vit_relpos_base_patch16_clsgap_224"),
    (step_on_meta, "simmim", "swin_tiny_patch4_window7_224"),
    (step_on_meta, "aim", "tiles"),
    (forward_on_fake_cuda, "mae, painted", "vit_tiny_patch16_224"),
    (forward_on_fake_cuda, "aim", "eva02_tiny_patch14_224"),
    (forward_on_fake_cuda, "aim, causal", "beit_base_patch16_224"),
    (forward_on_fake_cuda, "simmim", "swin_tiny_patch4_window7_224"),
    (forward_on_fake_cuda, "ijepa", "tiles"),
]
"""Each way to hide units, each on another family."""


def backbone_of(name: str) -> Backbone:
    return OTHERS[name]() if name in OTHERS else deepcopy(zoo.small(name))


@pytest.mark.parametrize(("way", "method", "name"), QUICK)
def test_one_of_each(way: Callable[[Pretrainer, Tensor], None], method: str, name: str) -> None:
    pretrainer = methods.build(method, backbone_of(name))
    way(pretrainer, images_for(pretrainer))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no adapter knows")
@pytest.mark.parametrize("name", [*zoo.NAMES, *OTHERS])
def test_every_method_on_every_backbone(name: str) -> None:
    """What the backbone cannot do is refused when the method is built; everything else passes."""
    backbone, passed = backbone_of(name), []
    for method in methods.METHODS:
        try:
            pretrainer = methods.build(method, deepcopy(backbone))
        except CannotError:
            continue
        if pretrainer.view.needs not in backbone.can:  # a variant that exchanges the view afterwards
            continue
        images = images_for(pretrainer)
        forward_on_fake_cuda(deepcopy(pretrainer), images)
        step_on_meta(pretrainer, images)
        passed.append(method)
    assert "simmim" in passed


@pytest.mark.parametrize("name", ["convit_tiny", "edgenext_xx_small"])
def test_tables_of_positions_are_not_copied_in_a_step(name: str) -> None:
    """timm makes them on the CPU."""
    pretrainer, waits = methods.build("simmim", backbone_of(name)), Waits()
    images = images_for(pretrainer)
    plan = pretrainer.draw(images).to("meta")
    pretrainer.to("meta").train()
    with waits:
        pretrainer(images.to("meta", non_blocking=True), plan).loss.backward()
    assert waits.noted == []


@pytest.mark.parametrize("way", [step_on_meta, forward_on_fake_cuda])
@pytest.mark.parametrize("build", [parts.causal, parts.masked])
def test_imagegpt(build: Callable[[], Pretrainer], way: Callable[[Pretrainer, Tensor], None]) -> None:
    pretrainer = build()
    images = images_for(pretrainer)
    pretrainer.target(images)  # a palette's table of codes is made on first use, on the CPU
    way(pretrainer, images)


@pytest.mark.parametrize("method", ["mae", "aim"])
def test_images_of_different_sizes(method: str) -> None:
    """Their sizes stay on the CPU."""
    pretrainer = methods.build(method, tiled("plain"))
    batch = canvas_of([torch.randn(3, 32, 96), torch.randn(3, 64, 60)], pretrainer.backbone.image_size)
    plan = pretrainer.draw(batch).to("meta")
    pretrainer.to("meta")
    output = pretrainer({"canvas": batch["canvas"].to("meta"), "size": batch["size"]}, plan)
    output.loss.backward()
    assert output.embedding.is_meta


def test_lists_of_tiles() -> None:
    backbone = tiled("plain").to("meta")
    tiles, tile_grid = torch.empty(1, 2, 3, 3, 32, 48, device="meta"), torch.tensor([[[1, 3], [2, 1]]])
    assert backbone.forward_tiles(tiles, tile_grid).units.is_meta


@pytest.mark.parametrize("readout", READOUTS)
def test_readouts(readout: Any) -> None:
    backbone = wrap("test_vit", img_size=32, depth=2).to("meta")
    assert backbone.pool(torch.empty(2, 3, 32, 32, device="meta"), readout).is_meta


def test_the_attentive_probe() -> None:
    probe = AttentiveProbe(width=16, heads=2, classes=3).to("meta")
    optimizer = torch.optim.AdamW(probe.parameters())
    for _ in range(2):
        logits = probe(torch.empty(4, 5, 16, device="meta"))
        torch.nn.functional.cross_entropy(logits, torch.empty(4, dtype=torch.long, device="meta")).backward()
        optimizer.step()


def test_drawing_codes() -> None:
    pretrainer = parts.causal()
    images = images_for(pretrainer)
    pretrainer.target(images)
    pretrainer.to("meta")
    assert sample(pretrainer, 2, top_k=3, top_p=0.9).is_meta
    assert complete(pretrainer, images, 8, copies=2).is_meta
    assert pretrainer.target.tokenizer.decode(sample(pretrainer, 2), parts.SQUARE).is_meta


@pytest.mark.parametrize("plan", ["aim", "aim, causal", "aim, random order"])
@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224"])
def test_completing_images(name: str, plan: str) -> None:
    """With cached keys and values, and without."""
    order = methods.build(plan, wrap("test_vit", img_size=32)).plan
    backbone = wrap(name, img_size=28 if "14" in name else 32, depth=1)
    pretrainer = patchcast_methods.aim(backbone, head_depth=1, normalize=False, plan=order)
    images = images_for(pretrainer).to("meta")
    assert complete_pixels(pretrainer.to("meta"), images, prefix=2).is_meta


def test_reads_are_noticed() -> None:
    """Of a value, of a tensor in an `if`, of a shape that depends on values, and of a tensor left on the CPU."""
    with FakeTensorMode():
        x = torch.empty(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DataDependentOutputException):
            assert x.any()
        with pytest.raises(RuntimeError, match="nonzero"):
            x[x > 0]
        with pytest.raises(RuntimeError, match="device"):
            x @ torch.empty(3)
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty(3, device="meta").sum().item()
