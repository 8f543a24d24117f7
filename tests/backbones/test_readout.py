"""Readouts: equal to what is computed by hand, padding left out, and refused where a model has nothing to read."""

from __future__ import annotations

from typing import get_args

import pytest
import timm
import torch

from patchcast.backbones import CannotError, wrap
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.backbones.readout import READOUTS, mean, mean_std
from patchcast.backbones.tiled import Tiled
from patchcast.evaluation import Classifier, extract
from patchcast.geometry import Grid


def test_names() -> None:
    assert set(READOUTS) == set(get_args(Readout))
    assert DEFAULT_READOUT in READOUTS


def test_by_hand() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, patch_size=8).eval()
    backbone, images = wrap(model).eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = model.forward_features(images)
        units = features[:, 1:]
        torch.testing.assert_close(backbone.pool(images, "mean"), units.mean(dim=1))
        torch.testing.assert_close(backbone.pool(images, "class"), features[:, 0])
        spread = units.std(dim=1, correction=0)
        torch.testing.assert_close(backbone.pool(images, "mean_std"), torch.cat([units.mean(dim=1), spread], dim=1))
        x, parts = model._pos_embed(model.patch_embed(images)), []
        for block in model.blocks:
            x = block(x)
            parts += [x[:, 1:].mean(dim=1), x[:, 1:].std(dim=1, correction=0)]
        torch.testing.assert_close(backbone.pool(images, "blocks"), torch.cat(parts, dim=1))


def test_padding_is_left_out() -> None:
    torch.manual_seed(0)
    units, is_valid = torch.randn(2, 5, 4), torch.tensor([[True] * 5, [True, True, True, False, False]])
    for summarize in (mean, mean_std):
        alone = torch.cat([summarize(units[:1]), summarize(units[1:, :3])])
        torch.testing.assert_close(summarize(units, is_valid), alone)
    backbone = Tiled(wrap("test_vit", img_size=32), Grid(2, 2)).eval()
    image = torch.randn(1, 3, 32, 64)
    canvas = torch.zeros(1, 3, 64, 64)
    canvas[:, :, :32] = image
    with torch.no_grad():
        padded = backbone.pool({"canvas": canvas, "size": torch.tensor([[32, 64]])}, "mean_std")
        whole = Tiled(backbone.tile, Grid(1, 2)).eval().pool(image, "mean_std")
    assert padded.shape == whole.shape == (1, 128)
    torch.testing.assert_close(padded, whole, rtol=1e-3, atol=1e-4)


def test_a_constant_unit_has_a_gradient() -> None:
    units = torch.ones(1, 4, 2, requires_grad=True)
    mean_std(units).sum().backward()
    assert units.grad is not None
    assert units.grad.isfinite().all()


def test_what_a_model_does_not_have() -> None:
    with pytest.raises(CannotError, match="has no class token; use another readout"):
        wrap("test_efficientnet").pool(torch.zeros(1, 3, 160, 160), "class")


@pytest.mark.parametrize("readout", get_args(Readout))
def test_extracted_alike_and_cached_apart(readout: Readout, tmp_path: object) -> None:
    torch.manual_seed(0)
    backbone, images = wrap("test_vit", img_size=32).eval(), torch.randn(2, 3, 32, 32)
    batches = [(images, torch.tensor([0, 1]))]
    default = extract(backbone, batches, cache=tmp_path)
    first, again = (extract(backbone, batches, readout=readout, cache=tmp_path) for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(first.x, backbone.pool(images, readout))
    assert torch.equal(first.x, again.x)
    assert (first.x.shape == default.x.shape) == (readout == DEFAULT_READOUT)


def test_a_classifier_reads_the_mean_as_timm_does() -> None:
    backbone = wrap("test_vit", img_size=32).eval()
    model, images = Classifier(backbone, classes=3).eval(), torch.randn(2, 3, 32, 32)
    torch.nn.init.normal_(model.classify.weight)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.classify(backbone.units(images).mean(dim=1)))
