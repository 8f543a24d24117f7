"""A fine-tuned vision transformer as a folder for transformers' `AutoModelForImageClassification`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from patchcast.classification.classifier_folder import FineTuned
from patchcast.files import write_text, write_weights
from patchcast.interop.mae_weights import split_qkv
from patchcast.interop.processors import processor_config

SHARED = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^blocks\.", "encoder.layer."),
    (r"^norm\.", "layernorm."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
)
HUB_NAMES = {
    "dinov2": (*SHARED, (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1")),
    "ijepa": (
        *SHARED,
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
}
"""The names of the hub's files, which all versions of transformers read."""
TRANSFORMERS_CLASSES = {"dinov2": "Dinov2ForImageClassification", "ijepa": "IJepaForImageClassification"}


def write_transformers(tuned: FineTuned, out: Path) -> None:
    """Write `model.safetensors`, `config.json` and `preprocessor_config.json`.

    Our classifiers take the mean over the units after the final norm. transformers' ViTForImageClassification takes the
    class token. The same network under a head on that mean is Dinov2ForImageClassification (whose head takes the class
    token as well, with weights of zero here) and, without a class token, IJepaForImageClassification.

    Raises:
        ValueError: if the model is no plain vision transformer with such a head.
    """
    model: Any = tuned.model
    problem = _unlike(model)
    if problem:
        raise ValueError(f"transformers has no class for this model ({problem}); --to timm, onnx and torch take it")
    kind = "dinov2" if model.cls_token is not None else "ijepa"
    state = split_qkv({name: value for name, value in model.state_dict().items() if not name.startswith("head")})
    renamed = {f"{kind}.{_rename(name, kind)}": value for name, value in state.items()}
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    width, depth = model.embed_dim, len(model.blocks)
    if kind == "dinov2":
        weight = torch.cat([torch.zeros_like(weight), weight], dim=1)
        for layer in range(depth):
            for number in (1, 2):
                renamed.setdefault(f"dinov2.encoder.layer.{layer}.layer_scale{number}.lambda1", torch.ones(width))
    renamed |= {"classifier.weight": weight, "classifier.bias": bias}
    write_weights(
        {name: value.detach().contiguous().clone() for name, value in renamed.items()}, out / "model.safetensors"
    )
    write_text(out / "config.json", json.dumps(_config(tuned, kind), indent=2) + "\n")
    evaluate = tuned.evaluate
    processor = processor_config(
        "ViTImageProcessor", evaluate.size, mean=tuned.mean, std=tuned.std, squash=evaluate.squash
    )
    write_text(out / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")


def logits_from_transformers(folder: Path) -> nn.Module:
    """The model that transformers loads, as a module from images to logits.

    Raises:
        ValueError: if transformers is not installed.
    """
    try:
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError as missing:
        raise ValueError(
            f"--to transformers compares predictions with transformers, which is missing ({missing}): pip install "
            "transformers"
        ) from missing
    logging.disable_progress_bar()
    return _Logits(AutoModelForImageClassification.from_pretrained(folder).eval())


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


def _unlike(model: Any) -> str:
    """What transformers' classes lack; empty if nothing."""
    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}"
    block: Any = model.blocks[0]
    mlp: Any = block.mlp
    checks = {
        "its head is attentive or reads another token": model.global_pool != "avg",
        "its norm comes after the mean": isinstance(model.norm, nn.Identity)
        or not isinstance(model.fc_norm, nn.Identity),
        "its norm is not a LayerNorm": not isinstance(model.norm, nn.LayerNorm),
        "it has register tokens": model.num_reg_tokens > 0,
        "it has a norm before its blocks": not isinstance(model.norm_pre, nn.Identity),
        "its class token has no position": model.cls_token is not None and model.no_embed_class,
        "it has norms inside its attention": not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity),
        "its blocks are of another kind": type(block).__name__ != "Block",
        "its activation is not GELU": type(block.mlp).__name__ != "Mlp" or not isinstance(mlp.act, nn.GELU),
        "its MLPs are no whole multiple of its width": model.cls_token is not None
        and mlp.fc1.out_features % model.embed_dim > 0,
        "it has layer scales but no class token": model.cls_token is None and not isinstance(block.ls1, nn.Identity),
    }
    return next((problem for problem, is_so in checks.items() if is_so), "")


def _rename(name: str, kind: str) -> str:
    for pattern, replacement in HUB_NAMES[kind]:
        name = re.sub(pattern, replacement, name)
    return name


def _config(tuned: FineTuned, kind: str) -> dict[str, Any]:
    model: Any = tuned.model
    block, (down, right), (height, width) = model.blocks[0], model.patch_embed.patch_size, tuned.evaluate.size
    hidden = block.mlp.fc1.out_features
    size: dict[str, Any] = (
        {"mlp_ratio": hidden // model.embed_dim} if kind == "dinov2" else {"intermediate_size": hidden}
    )
    return {
        "architectures": [TRANSFORMERS_CLASSES[kind]],
        "model_type": kind,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        **size,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": down if down == right else [down, right],
        "num_channels": tuned.channels,
        "qkv_bias": block.attn.qkv.bias is not None,
        **({"use_mask_token": False, "use_swiglu_ffn": False} if kind == "dinov2" else {}),
        **({"problem_type": "multi_label_classification"} if tuned.is_multi_label else {}),
        "id2label": {str(number): name for number, name in enumerate(tuned.names)},
        "label2id": {name: number for number, name in enumerate(tuned.names)},
    }
