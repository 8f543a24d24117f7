"""One small build or more of every class that has an adapter, and how they are built for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.adapters import TIMM

_NARROW = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": (64, 96)}
_SWIN = {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "window_size": 2, "img_size": (64, 96)}

# Class of timm: name and what makes it small. Image sizes are not square where the model permits, so that rows and
# columns cannot be taken for each other.
FAST: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "VisionTransformer": [
        ("vit_tiny_patch16_224", _NARROW),
        ("vit_base_patch32_clip_224", _NARROW),  # norm_pre
        ("vit_small_patch14_reg4_dinov2", {**_NARROW, "img_size": (56, 84)}),  # positions before the prefix
        ("vit_tiny_r_s16_p8_224", {**_NARROW, "img_size": (64, 96)}),  # ResNet stem
        ("vitamin_small_224", {"depth": 1, "img_size": (64, 96)}),  # MbConv stem
        ("vit_small_patch16_18x2_224", _NARROW),  # parallel blocks
        ("vit_base_patch16_rpn_224", _NARROW),  # residual post-norm
        ("vit_dwee_patch16_reg1_gap_256", _NARROW),  # differential attention
    ],
    "VisionTransformerDistilled": [("deit_tiny_distilled_patch16_224", _NARROW)],
    "Eva": [
        ("vit_tiny_patch16_dinov3_qkvb", _NARROW),
        ("eva02_tiny_patch14_224", {**_NARROW, "img_size": (56, 84)}),
        ("vit_small_patch16_rope_mixed_224", _NARROW),
        ("vit_pe_core_tiny_patch16_384", _NARROW),
    ],
    "NaFlexVit": [
        ("naflexvit_base_patch16_gap", _NARROW),
        ("naflexvit_base_patch16_parfac_gap", _NARROW),
    ],
    "Beit": [("beit_base_patch16_224", _NARROW)],
    "VisionTransformerRelPos": [
        ("vit_relpos_base_patch16_clsgap_224", _NARROW),
        ("vit_srelpos_small_patch16_224", _NARROW),
    ],
    "DeepseekVitEncoder": [("deepseek_vit_412m_enc", {**_NARROW, "img_size": (56, 84), "out_features": 40})],
    "DeepseekVitClassifier": [
        ("deepseek_vit_412m", {**_NARROW, "img_size": (56, 84)}),
        ("deepseek_vit_412m_align", {**_NARROW, "img_size": (84, 126), "out_features": 40}),
    ],
    "Qwen3VitEncoder": [("qwen3_vit_88m_enc", _NARROW)],
    "Qwen3VitClassifier": [("qwen3_vit_88m", _NARROW), ("qwen3_vit_88m_merge", {**_NARROW, "out_features": 40})],
    "Gemma4VitEncoder": [
        (
            "gemma4_vit_167m_enc",
            {**_NARROW, "head_dim": 16, "position_embedding_size": 64, "intermediate_size": 96, "img_size": (48, 96)},
        )
    ],
    "Gemma4VitClassifier": [
        ("gemma4_vit_167m", {**_NARROW, "head_dim": 16, "position_embedding_size": 64, "intermediate_size": 96})
    ],
    "Cait": [("cait_xxs24_224", _NARROW)],
    "TNT": [
        ("tnt_s_patch16_224", {"depth": 2, "img_size": 64}),
        ("tnt_s_legacy_patch16_224", {"depth": 2, "img_size": 64}),
    ],
    "ConVit": [("convit_tiny", {"depth": 3, "local_up_to_layer": 2, "img_size": 64})],
    "CrossVit": [
        ("crossvit_9_240", {"depth": ((1, 2, 0), (1, 1, 0), (1, 1, 0)), "embed_dim": (32, 64), "num_heads": (2, 2)}),
        ("crossvit_9_dagger_240", {"depth": ((1, 1, 0),), "embed_dim": (32, 64), "num_heads": (2, 2)}),
    ],
    "Hiera": [
        ("hiera_tiny_224", {"embed_dim": 24, "img_size": (64, 96)}),
        ("hiera_small_abswin_256", {"embed_dim": 24, "stages": (1, 2, 2, 1), "img_size": (64, 96)}),
    ],
    "HieraDet": [("sam2_hiera_tiny", {"embed_dim": 24, "img_size": (64, 96)})],
    "VisionTransformerSAM": [("samvit_base_patch16_224", {**_NARROW, "window_size": 3, "global_attn_indexes": (1,)})],
    "SwinTransformer": [("swin_tiny_patch4_window7_224", _SWIN)],
    "SwinTransformerV2": [("swinv2_tiny_window8_256", _SWIN)],
    "SwinTransformerV2Cr": [("swinv2_cr_tiny_ns_224", _SWIN)],
    "Nest": [("nest_tiny", {"img_size": 64})],
    "MaxxVit": [("test_maxvit", {"img_size": (64, 96)}), ("test_coatnet", {"img_size": 64})],
    "PyramidVisionTransformerV2": [("pvt_v2_b0", {"depths": (1, 1, 1, 1), "img_size": (64, 96)})],
    "MultiScaleVit": [("mvitv2_tiny", {"img_size": 64}), ("mvitv2_small_cls", {"img_size": 64})],
    "Twins": [
        ("twins_svt_small", {"depths": (1, 1, 2, 1), "embed_dims": (24, 48, 96, 96), "num_heads": (1, 2, 4, 4)}),
        ("twins_pcpvt_small", {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 96), "num_heads": (1, 2, 4, 4)}),
    ],
    "Xcit": [("xcit_nano_12_p16_224", {"depth": 2, "img_size": (64, 96)})],
    "CoaT": [("coat_tiny", {"img_size": (64, 96)}), ("coat_lite_tiny", {"img_size": (64, 96)})],
    "Levit": [("levit_256d", {"img_size": 128}), ("levit_conv_256d", {"img_size": 128})],
    "LevitDistilled": [("levit_128s", {"img_size": 128})],
    "PoolingVisionTransformer": [("pit_ti_distilled_224", {"depth": (1, 1, 1), "img_size": 64})],
    "VOLO": [("volo_d1_224", {"img_size": (64, 96)})],
    "DaVit": [
        (
            "davit_tiny",
            {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 96, 96), "num_heads": (1, 2, 4, 4), "img_size": (64, 96)},
        )
    ],
    "EdgeNeXt": [("edgenext_xx_small", {"img_size": (64, 96)})],
    "GlobalContextVit": [("gcvit_xxtiny", {"img_size": 64})],
    "Visformer": [("visformer_tiny", {"depth": (1, 1, 1), "img_size": 64})],
    "FocalNet": [("focalnet_tiny_srf", {"img_size": (64, 96)})],
    "CSATv2": [("csatv2", {"img_size": (64, 128)})],
    "EfficientFormer": [("efficientformer_l1", {})],
    "EfficientFormerV2": [("efficientformerv2_s0", {"img_size": 64})],
    "EfficientVit": [("efficientvit_b0", {"img_size": (64, 96)})],
    "EfficientVitLarge": [("efficientvit_l1", {"depths": (1, 1, 1, 1), "img_size": (64, 96)})],
    "EfficientVitMsra": [("efficientvit_m0", {"img_size": 128})],
    "FastVit": [("fastvit_t8", {"img_size": (64, 96)}), ("fastvit_sa12", {"img_size": (64, 96)})],
    "NextViT": [("nextvit_small", {"img_size": (64, 96)})],
    "SwiftFormer": [("swiftformer_xs", {"img_size": (64, 96)})],
    "TinyVit": [("tiny_vit_5m_224", {"depths": (1, 1, 1, 1), "img_size": (64, 96)})],
    "SHViT": [("shvit_s1", {"img_size": (64, 128)})],
    "IFormer": [("iformer_t", {"img_size": (64, 96)})],
    "LowFormer": [("lowformer_b0", {"img_size": (64, 96)})],
    "CPUBone": [("cpubone_nano", {"img_size": (64, 96)})],
    "MetaFormer": [("poolformerv2_s12", {"img_size": (64, 96)}), ("caformer_s18", {"img_size": (64, 96)})],
    "ByobNet": [("mobilevit_xxs", {"img_size": (64, 96)}), ("mobilevitv2_050", {"img_size": (64, 128)})],
    "MobileNetV5": [("mobilenetv5_base", {"img_size": 128, "channel_multiplier": 0.1})],
    "MobileNetV5Encoder": [("mobilenetv5_300m_enc", {"img_size": 128, "channel_multiplier": 0.1})],
}

# In what sequences of tokens differ, and an architecture for each: tests that need only some of them take these.
SEQUENCES = {
    "plain": "vit_tiny_patch16_224",
    "pre-norm": "vit_base_patch32_clip_224",
    "registers": "vit_small_patch14_reg4_dinov2",
    "no class token": "vit_base_patch16_siglip_224",
    "rotary": "vit_tiny_patch16_dinov3_qkvb",
    "rotary and table": "eva02_tiny_patch14_224",
    "mixed rotary": "vit_small_patch16_rope_mixed_224",
    "relative": "beit_base_patch16_224",
    "relative by MLP": "vit_relpos_base_patch16_clsgap_224",
    "naflex": "naflexvit_base_patch16_gap",
}


def sequence(kind: str, /, **kwargs: Any) -> Backbone:
    """Two blocks of the architecture that `SEQUENCES` names, with timm's own initial weights."""
    return wrap(SEQUENCES[kind], **{**_NARROW, **kwargs})


def build(name: str, /, seed: int = 0, **kwargs: Any) -> Backbone:
    """A backbone in eval mode with nothing left at zero, where a wrong bias or position table would not show."""
    torch.manual_seed(seed)
    backbone = wrap(name, **kwargs)
    randomize(backbone.model, seed)
    return backbone.eval()


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Move every parameter that starts constant (tokens, tables, biases, norms), and every running statistic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim <= 1 or any(part in name for part in ("rel", "pos", "token")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif not parameter.any():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.mul_(1 + torch.rand(buffer.shape, generator=generator))
            if "running_mean" in name:
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.1)


def images_for(backbone: Backbone, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, backbone.channels, *backbone.image_size, generator=generator)


def flat(features: Any) -> list[Tensor]:
    """The tensors of whatever a model returns."""
    if isinstance(features, Tensor):
        return [features]
    parts = features.values() if isinstance(features, dict) else features
    return [tensor for part in parts for tensor in flat(part)]


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal to the bit, and finite."""
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert torch.isfinite(mine).all()
        assert torch.equal(mine, other), f"differs by {(mine - other).abs().max():.2e}"


def scaled(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@cache
def small(name: str) -> Backbone:
    """The build of `FAST`, made once; tests that change it work on a copy."""
    return build(name, **BY_NAME[name])


# Some came after the oldest timm that we support.
BY_NAME: dict[str, dict[str, Any]] = {
    name: kwargs for pairs in FAST.values() for name, kwargs in pairs if timm.is_model(name)
}
NAMES = list(BY_NAME)
# timm's own classes refuse gradient checkpointing.
WITHOUT_CHECKPOINTING = {"ConVit", "CrossVit", "PoolingVisionTransformer", "Twins", "CoaT"}


def able(capability: str) -> list[str]:
    """Names of `FAST` whose adapter declares this; test_support.py holds the declarations to a list."""
    inherited = {"VisionTransformerDistilled": "VisionTransformer", "LevitDistilled": "Levit"}
    can = {cls: TIMM[inherited.get(cls, cls)].can for cls in FAST}
    return [name for cls, pairs in FAST.items() for name, _ in pairs if capability in can[cls] and name in BY_NAME]


# More than half a second a step, or a second build of a class whose first is quick: for `make test-all`.
HEAVY = {
    "caformer_s18",
    "coat_lite_tiny",
    "efficientformer_l1",
    "fastvit_sa12",
    "levit_conv_256d",
    "mobilenetv5_300m_enc",
    "mvitv2_small_cls",
    "tnt_s_legacy_patch16_224",
}


def marked(names: list[str], but: frozenset[str] = frozenset()) -> list[Any]:
    """Names as parameters of a test, without those of the classes in `but`; the heavy ones are marked slow."""
    out = {name for cls in but for name, _ in FAST[cls]}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in names if name not in out]


# One or two of each way in which adapters work: sequences, rotary and relative positions, class attention, windows,
# stages, groups of units, several resolutions, convolutions first.
REPRESENTATIVES = {
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_tiny_patch16_dinov3_qkvb",
    "naflexvit_base_patch16_gap",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "crossvit_9_240",
    "hiera_tiny_224",
    "swin_tiny_patch4_window7_224",
    "test_maxvit",
    "pvt_v2_b0",
    "mvitv2_tiny",
    "levit_128s",
    "mobilevit_xxs",
}


def representative(names: list[str]) -> list[Any]:
    """Names as parameters of a test; all but `REPRESENTATIVES` are marked slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in REPRESENTATIVES)) for name in names]
