"""MAE against transformers' ViTMAE: the numbers, and the files, both ways."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from patchcast.backbones import Grid, wrap
from patchcast.interop import load_mae, mae_from_transformers, save_mae
from patchcast.interop.mae_weights import our_name, paper_names
from patchcast.methods import mae
from patchcast.plans import MaskPlan
from patchcast.positions import sincos_positions
from patchcast.pretrainer import Pretrainer
from tests.peers import wake

transformers = pytest.importorskip("transformers", reason="the peer here: pip install patchcast[peers]")

SIZE, PATCH = 32, 8


def peer(*, normalize: bool = True, eps: float = 1e-6) -> torch.nn.Module:
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=SIZE,
        patch_size=PATCH,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        norm_pix_loss=normalize,
        layer_norm_eps=eps,
    )
    model = transformers.ViTMAEForPreTraining(config)
    with torch.no_grad():  # version 5.23 leaves both tables of a fresh model at zero
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            table[0, 1:] = sincos_positions(Grid(SIZE // PATCH, SIZE // PATCH), table.shape[-1])
    return wake(model)


def ours(*, normalize: bool = True, img_size: int = SIZE, **timm_kwargs) -> Pretrainer:
    backbone = wrap(
        "vit_tiny_patch16_224",
        img_size=img_size,
        patch_size=PATCH,
        embed_dim=48,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        **timm_kwargs,
    )
    return mae(backbone, decoder_width=32, decoder_depth=2, decoder_heads=2, normalize=normalize)


def plan_of(noise: Tensor, pretrainer: Pretrainer, images: Tensor) -> MaskPlan:
    """The plan of transformers' noise: the units of the smallest are visible."""
    order, grid = noise.argsort(dim=1), pretrainer.backbone.grid(images)
    seen = int(grid.units * 0.25)
    return MaskPlan(grid, order[:, :seen], order[:, None, seen:])


def assert_equal_outputs(pretrainer: Pretrainer, model: torch.nn.Module) -> None:
    images, noise = torch.randn(3, 3, SIZE, SIZE), torch.rand(3, 16)
    plan = plan_of(noise, pretrainer, images)
    output, expected = pretrainer(images, plan), model(images, noise=noise)
    hidden = plan.hidden[:, 0, :, None].expand(-1, -1, output.predictions.shape[-1])
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.predictions[:, 0], expected.logits.gather(1, hidden), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_transformers(normalize: bool, tmp_path: Path) -> None:
    model, pretrainer = peer(normalize=normalize), ours(normalize=normalize)
    save_file(model.state_dict(), tmp_path / "names_of_the_modules.safetensors")
    assert load_mae(pretrainer, tmp_path / "names_of_the_modules.safetensors")
    assert_equal_outputs(pretrainer, model)


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    model, pretrainer = peer(), ours()
    model.save_pretrained(tmp_path)
    load_mae(pretrainer, tmp_path)
    images, noise = torch.randn(3, 3, SIZE, SIZE), torch.rand(3, 16)
    pretrainer(images, plan_of(noise, pretrainer, images)).loss.backward()
    model(images, noise=noise).loss.backward()
    theirs = paper_names({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    mine = {name: each.grad for name, each in pretrainer.named_parameters() if each.grad is not None}
    assert {our_name(name) for name in theirs} == mine.keys() - {"backbone.model.pos_embed"}  # theirs are fixed
    for name, gradient in theirs.items():
        gradient = gradient.reshape(mine[our_name(name)].shape)
        torch.testing.assert_close(mine[our_name(name)], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("normalize", [True, False])
def test_from_a_folder_of_transformers(normalize: bool, tmp_path: Path) -> None:
    """Sizes, heads, epsilon and kind of target are read from its configuration."""
    model = peer(normalize=normalize, eps=1e-3)
    model.save_pretrained(tmp_path)
    assert_equal_outputs(mae_from_transformers(tmp_path), model)


def test_to_a_folder_of_transformers(tmp_path: Path) -> None:
    """Weights that transformers has never seen, which it then reads whole, and which come back to the bit."""
    pretrainer = ours(normalize=False)
    wake(pretrainer)
    save_mae(pretrainer, tmp_path)
    model, report = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_outputs(pretrainer, model)
    again = mae_from_transformers(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, pretrainer.state_dict()[name]), name


def test_the_papers_format(tmp_path: Path) -> None:
    """A training checkpoint of the paper's script: weights under "model", with its arguments beside them."""
    model = peer()
    state = paper_names(model.state_dict())
    assert {"decoder_blocks.0.attn.qkv.weight", "decoder_pred.bias", "blocks.1.mlp.fc2.bias"} <= state.keys()
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "mae.pth")
    pretrainer = ours()
    assert load_mae(pretrainer, tmp_path / "mae.pth")
    assert_equal_outputs(pretrainer, model)


def test_an_encoder_alone(tmp_path: Path) -> None:
    state = {name: value for name, value in paper_names(peer().state_dict()).items() if "decoder" not in name}
    del state["mask_token"]
    torch.save({"model": state}, tmp_path / "encoder.pth")
    pretrainer = ours()
    before = pretrainer.predictor.mask_token.clone()
    assert not load_mae(pretrainer, tmp_path / "encoder.pth")
    assert torch.equal(pretrainer.predictor.mask_token, before)
    assert torch.equal(pretrainer.backbone.model.blocks[1].mlp.fc2.bias, state["blocks.1.mlp.fc2.bias"])


def test_encoder_positions_are_resampled(tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path)
    pretrainer = ours(img_size=64)
    load_mae(pretrainer, tmp_path)
    assert pretrainer.backbone.model.pos_embed.shape == (1, 65, 48)
    pretrainer(torch.randn(1, 3, 64, 64))


class Danger:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    model = peer()
    state = paper_names(model.state_dict())
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"more.pth does not fit: there is no place for backbone.model.extra"):
        load_mae(ours(), tmp_path / "more.pth")
    torch.save({name: value for name, value in state.items() if name != "norm.bias"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"it lacks backbone\.model\.norm\.bias"):
        load_mae(ours(), tmp_path / "less.pth")
    torch.save({**state, "norm.bias": torch.zeros(7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"\(7,\) in it, \(48,\) here"):
        load_mae(ours(), tmp_path / "other.pth")
    with torch.no_grad():
        model.decoder.decoder_pos_embed.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"decoder positions that differ by up to 1\.00"):
        load_mae(ours(), tmp_path)
    torch.save({"model": Danger()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="could run code: it is not read"):
        load_mae(ours(), tmp_path / "code.pth")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"init_values": 0.1}, "no place for blocks.0.ls1.gamma"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "one class token"),
        ({"reg_tokens": 2}, "no place for reg_token"),
    ],
)
def test_what_transformers_cannot_hold_is_not_written(kwargs: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_mae(ours(**kwargs), tmp_path)


@pytest.mark.parametrize("options", [{"decoder_kernel": 3}, {"mask_cell": 2}])
def test_an_encoder_alone_to_a_folder_of_transformers(options: dict, tmp_path: Path) -> None:
    """Of a decoder or a mask that transformers has not: `ViTMAEModel` reads it whole, with our features."""
    pretrainer = mae(ours().backbone, decoder_width=32, decoder_depth=2, **options)
    wake(pretrainer)
    assert not save_mae(pretrainer, tmp_path)
    model, report = transformers.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0, output_loading_info=True)
    assert not any(report.values()), report
    images, units = torch.randn(2, 3, SIZE, SIZE), (SIZE // PATCH) ** 2
    with torch.no_grad():
        found = model.eval()(images, noise=torch.arange(units).expand(2, -1) / units).last_hidden_state
        torch.testing.assert_close(found[:, 1:], pretrainer.eval().backbone.units(images), atol=1e-5, rtol=1e-4)
