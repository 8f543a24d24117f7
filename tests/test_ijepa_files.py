"""I-JEPA checkpoints in the paper's format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchcast.backbones import wrap
from patchcast.interop import load_ijepa
from patchcast.interop.ijepa_weights import PREDICTOR
from patchcast.methods import ijepa, mae
from patchcast.positions import sincos_positions
from patchcast.pretrainer import Pretrainer
from tests.peers import wake


def build(seed: int = 0, img_size: int = 32) -> Pretrainer:
    torch.manual_seed(seed)
    backbone = wrap("test_vit", img_size=img_size, patch_size=8, class_token=False, global_pool="avg", fc_norm=False)
    return ijepa(backbone, predictor_depth=2)


def checkpoint(pretrainer: Pretrainer) -> dict:
    """What the paper's script writes: three parts as DistributedDataParallel names them, and its counters."""
    state = pretrainer.state_dict()

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            f"module.{name.removeprefix(prefix)}": value
            for name, value in state.items()
            if name.startswith(prefix) and ".head." not in name
        }

    theirs = {ours.removeprefix("predictor."): name for name, ours in PREDICTOR.items()}
    predictor = {"module.predictor_pos_embed": sincos_positions(pretrainer.backbone.grid((32, 32)), 32)[None]}
    for name, value in state.items():
        if name.startswith("predictor."):
            first, dot, rest = name.removeprefix("predictor.").partition(".")
            predictor[f"module.{theirs[first]}{dot}{rest}"] = value.view(1, 1, -1) if not dot else value
    encoder, target = part("backbone.model."), part("target.teacher.model.")
    return {"encoder": encoder, "predictor": predictor, "target_encoder": target, "opt": {"lr": 1e-3}, "epoch": 5}


def test_all_three_parts_come_in(tmp_path: Path) -> None:
    source = build(seed=1)
    wake(source.backbone)
    wake(source.predictor)
    saved = checkpoint(source)
    assert "module.mask_token" in saved["predictor"]
    assert "module.blocks.0.attn.qkv.weight" in saved["encoder"]
    torch.save(saved, tmp_path / "ijepa.pth.tar")
    loaded = build(seed=2)
    load_ijepa(loaded, tmp_path / "ijepa.pth.tar")
    images = torch.randn(3, 3, 32, 32)
    plan = source.draw(images)
    before, after = source(images, plan), loaded(images, plan)
    assert torch.equal(before.predictions, after.predictions)
    assert torch.equal(before.targets, after.targets)


def test_positions_are_resampled(tmp_path: Path) -> None:
    torch.save(checkpoint(build()), tmp_path / "ijepa.pth.tar")
    loaded = build(img_size=64)
    load_ijepa(loaded, tmp_path / "ijepa.pth.tar")
    assert loaded(torch.randn(1, 3, 64, 64)).loss.isfinite()


def test_what_does_not_fit(tmp_path: Path) -> None:
    saved = checkpoint(build())
    torch.save(saved, tmp_path / "ijepa.pth.tar")
    with pytest.raises(ValueError, match="needs a Decoder and EMAFeatures"):
        load_ijepa(mae(wrap("test_vit")), tmp_path / "ijepa.pth.tar")
    with pytest.raises(ValueError, match=r"it lacks backbone\.model\.cls_token"):
        load_ijepa(ijepa(wrap("test_vit", img_size=32, patch_size=8), predictor_depth=2), tmp_path / "ijepa.pth.tar")
    del saved["predictor"]
    torch.save(saved, tmp_path / "two.pth.tar")
    with pytest.raises(ValueError, match=r"two\.pth\.tar lacks predictor"):
        load_ijepa(build(), tmp_path / "two.pth.tar")
