"""transformers' folders: the features are those that transformers' own classes give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patchcast.starts import load_start
from tests.peers import wake

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"image_size": 32, "patch_size": 8, "intermediate_size": 64}
DINOV2 = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
CASES = {
    "ViTModel": ("ViTConfig", SIZES),
    "ViTForImageClassification": ("ViTConfig", {**SIZES, "qkv_bias": False}),
    "IJepaModel": ("IJepaConfig", SIZES),
    "Dinov2Model": ("Dinov2Config", {**DINOV2, "mlp_ratio": 2}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**DINOV2, "mlp_ratio": 2}),
    "Dinov2Model, gated": ("Dinov2Config", {**DINOV2, "use_swiglu_ffn": True}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**SIZES, "num_register_tokens": 4}),
    "DINOv3ViTModel, no biases": ("DINOv3ViTConfig", {**SIZES, "query_bias": False, "value_bias": False}),
    "DINOv3ViTModel, gated": (
        "DINOv3ViTConfig",
        {**SIZES, "use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 2},
    ),
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def theirs(case: str) -> Any:
    config, sizes = CASES[case]
    torch.manual_seed(0)
    return wake(getattr(transformers, case.partition(",")[0])(getattr(transformers, config)(**sizes))).eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_features_are_theirs(case: str, shard: str, tmp_path: Path) -> None:
    peer = theirs(case)
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    started = load_start(str(tmp_path))
    assert not started.fitted.new, started.fitted
    with torch.no_grad():
        inner = peer if "Model" in case else getattr(peer, peer.base_model_prefix)
        expected = inner(IMAGES).last_hidden_state
        own = started.backbone.eval().model.forward_features(IMAGES)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_a_single_file_of_transformers_needs_the_model(tmp_path: Path) -> None:
    peer = theirs("ViTModel")
    peer.save_pretrained(tmp_path)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    started = load_start(str(tmp_path / "model.safetensors"), "vit_base_patch16_224", **args)
    with torch.no_grad():
        own = started.backbone.eval().model.forward_features(IMAGES)
        expected = peer(IMAGES).last_hidden_state
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    theirs("ViTModel").save_pretrained(tmp_path)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    with pytest.raises(ValueError, match="has 2 attention heads and the model 4"):
        load_start(str(tmp_path), "vit_base_patch16_224", **args)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov3_vit", "use_gated_mlp": true, "hidden_act": "gelu"}')
    with pytest.raises(ValueError, match="hidden_act='gelu'; timm's network of dinov3_vit has 'silu'"):
        load_start(str(tmp_path))


def test_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="transformers' 'bert'; those that can be read are vit"):
        load_start(str(tmp_path))
