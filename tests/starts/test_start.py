"""Weights from everywhere: what comes in computes what it computed there, and the rest is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from patchcast.backbones import wrap
from patchcast.backbones.aim_network import ARCHITECTURE
from patchcast.interop import load_aim, save_mae
from patchcast.methods import ijepa, mae
from patchcast.starts import fit, load_start, read_start
from patchcast.starts.fitting import StartReport, adapt_stem, fit_parts
from tests import test_aim_files, test_ijepa_files
from tests.peers import wake

MODEL, SMALL = "test_vit", {"img_size": 32, "patch_size": 8}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def model(seed: int = 1, **changes: Any) -> nn.Module:
    """A vision transformer whose every weight is unlike any initial value."""
    torch.manual_seed(seed)
    return wake(timm.create_model(MODEL, **{**SMALL, **changes})).eval()


def features(vit: Any, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return vit.forward_features(images)


def ours(words: str | Path, name: str | None = MODEL, **args: Any) -> Any:
    return load_start(str(words), name, **({**SMALL, **args} if name else args))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "encoder.", "_orig_mod.module.net.vit."])
@pytest.mark.parametrize("inside", [None, "model", "state_dict", "model_ema"])
def test_a_file_by_whatever_prefix(prefix: str, inside: str | None, tmp_path: Path) -> None:
    vit = model()
    state = {f"{prefix}{name}": value for name, value in vit.state_dict().items()}
    others = {"optimizer": {"lr": 1e-3}, "epoch": 3, "hyper_parameters": {"a": 1}}
    torch.save(state if inside is None else {inside: state, **others}, tmp_path / "weights.pth")
    started = ours(tmp_path / "weights.pth")
    assert torch.equal(features(started.backbone.model.eval()), features(vit))
    assert started.fitted.left_out == ["head.weight", "head.bias"]
    assert (started.fitted.new, started.fitted.resampled) == ([], {})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    vit, file = model(), tmp_path / f"weights{suffix}"
    save_file(vit.state_dict(), file) if suffix == ".safetensors" else torch.save(vit.state_dict(), file)
    assert torch.equal(features(ours(file).backbone.model.eval()), features(vit))


def test_no_code_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    torch.save({"model": model().state_dict(), "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="could run code"):
        ours(tmp_path / "evil.pth")


def test_positions_and_patches_are_resampled_as_timm_does(tmp_path: Path) -> None:
    vit = model()
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    started = ours(tmp_path / "weights.pth", img_size=48)
    assert started.fitted.resampled == {"pos_embed": ([1, 17, 64], [1, 37, 64])}
    expected = resample_abs_pos_embed(vit.pos_embed, [6, 6], num_prefix_tokens=1)
    assert torch.equal(started.backbone.model.pos_embed, expected)
    finer = ours(tmp_path / "weights.pth", patch_size=4)
    assert set(finer.fitted.resampled) == {"patch_embed.proj.weight", "pos_embed"}
    other = timm.create_model(MODEL, img_size=32, patch_size=4, num_classes=0)
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(vit.state_dict(), other), strict=False)
    assert torch.equal(features(finer.backbone.model.eval()), features(other.eval()))


def test_gray_images_give_what_their_rgb_copies_gave(tmp_path: Path) -> None:
    vit = model()
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    started = ours(tmp_path / "weights.pth", in_chans=1)
    gray = torch.randn(2, 1, 32, 32)
    rgb = features(vit, gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features(started.backbone.model.eval(), gray), rgb, rtol=1e-4, atol=1e-4)
    assert "sum of 3" in started.fitted.adapted["patch_embed.proj.weight"]
    assert (len(started.mean), len(started.std)) == (1, 1)


def test_rgba_and_named_bands_give_what_their_rgb_gave(tmp_path: Path) -> None:
    vit = model()
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    rgba = ours(tmp_path / "weights.pth", in_chans=4).backbone.model.eval()
    images = torch.randn(2, 4, 32, 32)
    torch.testing.assert_close(features(rgba, images), features(vit, images[:, :3]), rtol=1e-4, atol=1e-4)
    bands = ours(tmp_path / "weights.pth", in_chans=13, bands=(3, 2, 1)).backbone.model.eval()
    images = torch.randn(2, 13, 32, 32)
    torch.testing.assert_close(features(bands, images), features(vit, images[:, [3, 2, 1]]), rtol=1e-4, atol=1e-4)


def test_unnamed_bands_get_a_new_stem(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "weights.pth")
    started = ours(tmp_path / "weights.pth", in_chans=13)
    assert started.fitted.new == ["patch_embed.proj.bias", "patch_embed.proj.weight"]
    assert "new for 13 channels" in started.fitted.adapted["patch_embed.proj.weight"]
    assert torch.equal(started.backbone.model.blocks[0].attn.qkv.weight, model().blocks[0].attn.qkv.weight)
    assert adapt_stem(torch.zeros(1, 3, 2, 2), 2) is None


def test_another_model_is_refused_with_the_one_that_fits(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(
        ValueError, match=r"cls_token is 1x1x192 there and 1x1x64 here.*--model vit_tiny_patch16_224"
    ) as e:
        load_start(str(tmp_path / "tiny.pth"), MODEL)
    assert "\n" not in str(e.value)
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has 0 % of this model's weights.*no place here for layer\.weight"):
        load_start(str(tmp_path / "other.pth"), MODEL)
    untouched = wrap(MODEL)
    before = {name: value.clone() for name, value in untouched.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit"):
        fit(untouched, read_start(str(tmp_path / "tiny.pth")))
    assert all(torch.equal(value, before[name]) for name, value in untouched.state_dict().items())


def test_the_model_of_a_file_is_recognized(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224").eval()
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in vit.state_dict().items()}}, tmp_path / "t.ckpt"
    )
    started = load_start(str(tmp_path / "t.ckpt"))
    assert started.architecture == "vit_tiny_patch16_224"
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(features(started.backbone.model.eval(), images), features(vit, images))


def test_words_that_name_nothing(tmp_path: Path) -> None:
    for words, message in {
        "vit_smal_patch16_224": "did you mean vit_small_patch16_224",
        f"{tmp_path}/none.pth": "there is no file or folder",
        "local-dir:nowhere": "there is no folder nowhere",
        str(tmp_path): "holds no model.safetensors",
        "test_vit5": "timm has no",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_start(words)


def test_other_families_come_in_by_timms_own_filters(tmp_path: Path) -> None:
    for name, args in {
        "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
        "beit_base_patch16_224": {"depth": 1},
    }.items():
        theirs = timm.create_model(name, **args).eval()
        torch.save({"model": theirs.state_dict()}, tmp_path / "weights.pth")
        started = load_start(str(tmp_path / "weights.pth"), name, **args)
        images = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            assert torch.equal(started.backbone.model.eval().forward_features(images), theirs.forward_features(images))
        assert not started.fitted.new


def test_mae_with_its_decoder(tmp_path: Path) -> None:
    source = mae(wrap(model()), decoder_depth=1)
    wake(source.predictor)
    save_mae(source, tmp_path / "folder")
    start = read_start(str(tmp_path / "folder"))
    target = mae(wrap(MODEL, **SMALL), decoder_depth=1)
    report = fit(target.backbone, start)
    fit_parts(target, start, "mae", report)
    assert (report.new, report.left_out) == ([], [])
    plan = source.draw(IMAGES)
    assert torch.equal(source(IMAGES, plan).predictions, target(IMAGES, plan).predictions)
    deeper = mae(wrap(MODEL, **SMALL), decoder_depth=2)
    report = fit(deeper.backbone, start)
    before = {name: value.clone() for name, value in deeper.predictor.state_dict().items()}
    fit_parts(deeper, start, "mae", report)
    assert all(torch.equal(value, before[name]) for name, value in deeper.predictor.state_dict().items())
    assert any(name.startswith("predictor.") for name in report.new)
    report = fit(target.backbone, start)
    fit_parts(ijepa(target.backbone), start, "ijepa", report)
    assert any(name.startswith("predictor.") for name in report.left_out)


def test_ijepas_checkpoint_with_predictor_and_teacher(tmp_path: Path) -> None:
    source = test_ijepa_files.build(seed=1)
    wake(source.backbone)
    wake(source.predictor)
    torch.save(test_ijepa_files.checkpoint(source), tmp_path / "ijepa.pth.tar")
    target, start = test_ijepa_files.build(seed=2), read_start(str(tmp_path / "ijepa.pth.tar"))
    report = fit(target.backbone, start)
    fit_parts(target, start, "ijepa", report)
    plan = source.draw(IMAGES)
    before, after = source(IMAGES, plan), target(IMAGES, plan)
    assert torch.equal(before.predictions, after.predictions)
    assert torch.equal(before.targets, after.targets)
    assert not report.new


def test_aims_checkpoint_with_computed_positions(tmp_path: Path) -> None:
    torch.save(test_aim_files.checkpoint(), tmp_path / "aim.pth")
    expected, backbone = test_aim_files.small(), test_aim_files.small()
    load_aim(expected, tmp_path / "aim.pth")
    report: StartReport = fit(backbone, read_start(str(tmp_path / "aim.pth")))
    state = expected.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())
    assert not report.new
    with pytest.raises(ValueError, match=ARCHITECTURE):
        load_start(str(tmp_path / "aim.pth"))
