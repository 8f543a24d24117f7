"""Images of other sizes and with other channels; and what is said where a model does not take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.naflex_dataset import NaFlexCollator
from timm.data.naflex_transforms import Patchify
from torch import Tensor

from patchcast.backbones import Backbone, wrap
from patchcast.geometry import take
from tests.backbones.zoo import BY_NAME, NAMES, assert_same, build, images_for, marked, representative, scaled, small

RGB_ONLY = frozenset({"CSATv2"})  # converts RGB to YCbCr before its stem


@pytest.mark.parametrize("name", representative(NAMES))
def test_any_size_or_refused(name: str) -> None:
    backbone = small(name)
    (rows, cols), (down, right) = backbone.grid(backbone.image_size), backbone.stride
    images = torch.randn(2, backbone.channels, down * rows * 2, right * cols)
    if not backbone.takes_any_size:
        with pytest.raises(ValueError, match=r"takes \d+x\d+ only; got"):
            backbone.embed(images)
        return
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))
        assert backbone.units(images).shape == (2, rows * 2 * cols, backbone.width)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_pe_core_tiny_patch16_384", "vit_small_patch16_rope_mixed_224"]
)
def test_dynamic_image_size(name: str) -> None:
    backbone = build(name, **BY_NAME[name], dynamic_img_size=True)
    images = torch.randn(2, 3, 128, 48)
    order = torch.stack([torch.randperm(24) for _ in images])
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))
        tokens = backbone.keep(backbone.embed(images), order)
        shuffled = backbone.split(backbone.forward_stages(tokens), tokens)[1]
        assert scaled(shuffled, take(backbone.units(images), order)) < 1e-5


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224"])
def test_swins_that_are_built_for_any_size(name: str) -> None:
    backbone = build(name, **BY_NAME[name], strict_img_size=False)
    images = torch.randn(2, 3, 128, 32)
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))
        assert backbone.units(images).shape == (2, 4, backbone.width)


def pretrained(name: str, tmp_path: Path, size: tuple[int, int]) -> tuple[Backbone, Backbone]:
    """A backbone of 64x64 pixels, and another of the given size with its weights, loaded as timm loads any."""
    if name not in BY_NAME:
        pytest.skip(f"timm {timm.__version__} has no {name}")
    kwargs = {**BY_NAME[name], "img_size": (64, 64)}
    first = build(name, **kwargs)
    torch.save(first.model.state_dict(), tmp_path / "weights.pt")
    source = {"file": str(tmp_path / "weights.pt"), "url": "", "hf_hub_id": None}
    kwargs |= {"img_size": size, "pretrained": True, "pretrained_cfg_overlay": source}
    try:
        return first, wrap(name, **kwargs).eval()
    except KeyError as error:
        pytest.skip(f"timm {timm.__version__} reads numpy archives alone from a file: {error}")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("vit_tiny_patch16_224", "pos_embed"),
        ("vit_pe_core_tiny_patch16_384", "pos_embed"),
        ("beit_base_patch16_224", "blocks.0.attn.relative_position_bias_table"),
        ("test_maxvit", "stages.0.blocks.0.attn_block.attn.rel_pos.relative_position_bias_table"),
        ("tnt_s_patch16_224", "patch_pos"),
    ],
)
def test_pretrained_positions_are_resampled(name: str, table: str, tmp_path: Path) -> None:
    first, backbone = pretrained(name, tmp_path, (128, 64))
    assert backbone.image_size == (128, 64)
    before, after = (each.model.state_dict() for each in (first, backbone))
    assert before[table].shape != after[table].shape
    rest = [key for key in before if before[key].shape == after[key].shape and before[key].is_floating_point()]
    assert all(torch.equal(before[key], after[key]) for key in rest)
    images = images_for(backbone)
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))


def test_pretrained_positions_that_timm_does_not_resample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cait_xxs24_224 do not fit .*img_size=\(128, 64\).* resample its pos_embed"):
        pretrained("cait_xxs24_224", tmp_path, (128, 64))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("name", marked(NAMES, but=RGB_ONLY))
def test_channels_of_every_class(name: str, channels: int) -> None:
    test_channels(name, channels)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "levit_128s",
        "naflexvit_base_patch16_gap",
        "beit_base_patch16_224",
    ],
)
def test_channels(name: str, channels: int) -> None:
    backbone = build(name, **BY_NAME[name], in_chans=channels)
    assert backbone.channels == channels
    images = images_for(backbone)
    with torch.no_grad():
        assert_same(backbone(images), backbone.model.forward_features(images))


@pytest.mark.parametrize("name", marked(NAMES, but=RGB_ONLY))
def test_other_channels_are_refused(name: str) -> None:
    backbone = small(name)
    with pytest.raises(ValueError, match="takes 3 channels; got 4"):
        backbone.embed(torch.zeros(1, 4, *backbone.image_size))


def test_a_size_that_the_stride_does_not_divide() -> None:
    with pytest.raises(ValueError, match="needs H and W divisible by 32; got 65x96"):
        small("pvt_v2_b0").grid((65, 96))


def test_units_of_a_nominal_size_that_halvings_round_up() -> None:
    """LeViT halves 224 to 7, and then to 4: its units are 56 pixels wide, not 64."""
    backbone = wrap("levit_128s")
    assert backbone.stride == (56, 56)
    assert backbone.units(torch.zeros(1, 3, 224, 224)).shape[1] == 16


# ---- NaFlex: a batch of the patches of images of different sizes ----------------------------------------------------

NAFLEX = {
    "table": ("naflexvit_base_patch16_gap", {}),
    "factorized": ("naflexvit_base_patch16_parfac_gap", {}),
    "axial": ("naflexvit_base_patch16_gap", {"rope_type": "axial"}),
    "mixed": ("naflexvit_base_patch16_gap", {"rope_type": "mixed"}),
}


def patches_of(sizes: list[tuple[int, int]], channels: int = 3) -> dict[str, Any]:
    """A batch as timm's NaFlex loader makes it, of images of these (rows, cols) of 16-pixel patches."""
    images = [torch.randn(channels, rows * 16, cols * 16) for rows, cols in sizes]
    longest = max(rows * cols for rows, cols in sizes)
    batch, _ = NaFlexCollator(max_seq_len=longest)([(Patchify(16)(image), 0) for image in images])
    return batch


def fields(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Those that timm's model takes."""
    return {name: batch[name] for name in ("patches", "patch_coord", "patch_valid")}


def naflex(kind: str) -> Any:
    name, extra = NAFLEX[kind]
    backbone = build(name, **BY_NAME[name], **extra)
    try:
        backbone.model.forward_features(**fields(patches_of([(1, 2)])))
    except TypeError as error:  # an old one, with rotations per block
        pytest.skip(f"timm {timm.__version__} itself cannot: {error}")
    return backbone


@pytest.mark.parametrize("kind", NAFLEX)
def test_naflex_batches_are_exact(kind: str) -> None:
    backbone, batch = naflex(kind), patches_of([(2, 5), (4, 3), (1, 7)])
    with torch.no_grad():
        assert_same(backbone(batch), backbone.model.forward_features(**fields(batch)))


@pytest.mark.parametrize("kind", NAFLEX)
def test_naflex_keeps_positions_when_units_are_dropped(kind: str) -> None:
    backbone, batch = naflex(kind), patches_of([(2, 5), (4, 3)])
    order = torch.stack([torch.randperm(12) for _ in range(2)])
    with torch.no_grad():
        units = backbone.units(batch)
        tokens = backbone.keep(backbone.embed(batch), order)
        shuffled = backbone.split(backbone.forward_stages(tokens), tokens)[1]
    valid = batch["patch_valid"].gather(1, order)
    assert scaled(shuffled[valid], take(units, order)[valid]) < 1e-5


@pytest.mark.parametrize("kind", NAFLEX)
def test_naflex_padding_and_masks_leak_nothing(kind: str) -> None:
    backbone, batch = naflex(kind), patches_of([(2, 5), (4, 3)])
    moved = {**batch, "patches": batch["patches"].clone()}
    moved["patches"][0, 10:] += 1.0  # padding
    moved["patches"][:, 6] += 1.0
    with torch.no_grad():
        before, after = (backbone.embed(each) for each in (batch, moved))
        still, changed = (
            backbone.split(backbone.forward_stages(each, is_causal=True), each)[1] for each in (before, after)
        )
    difference = (changed - still).abs().amax(-1)
    assert not difference[:, :6].any()
    assert (difference[batch["patch_valid"]].view(-1)[6:10] > 0).all()


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_naflex_takes_images_of_different_sizes_with_any_channels(channels: int) -> None:
    backbone = build("naflexvit_base_patch16_gap", **BY_NAME["naflexvit_base_patch16_gap"], in_chans=channels)
    batch = patches_of([(2, 5), (4, 3)], channels)
    alone = patches_of([(2, 5)], channels)
    alone["patches"][0] = batch["patches"][0, :10]
    with torch.no_grad():
        assert_same(backbone(batch), backbone.model.forward_features(**fields(batch)))
        assert scaled(backbone.units(batch)[:1, :10], backbone.units(alone)) < 1e-5
        assert scaled(backbone.pool(batch)[:1], backbone.pool(alone)) < 1e-5


def test_naflex_hides_units_of_images_of_different_sizes() -> None:
    backbone, batch = naflex("table"), patches_of([(2, 5), (4, 3)])
    is_hidden = torch.zeros(2, 1, 12, dtype=torch.bool)
    is_hidden[:, 0, 3:6] = True
    moved = {**batch, "patches": batch["patches"].clone()}
    moved["patches"][:, 3:6] += 1.0
    with torch.no_grad():
        features = [backbone.forward_stages(backbone.embed(each, is_hidden=is_hidden)) for each in (batch, moved)]
    assert_same(*features)


def test_batches_of_patches_are_for_naflex() -> None:
    with pytest.raises(ValueError, match="batches of patches are for NaFlexVit"):
        small("vit_tiny_patch16_224").embed(patches_of([(2, 2)]))
