"""transformers' folders (ViT, MAE, DeiT, I-JEPA, DINOv2, DINOv3, ImageGPT) under timm's names, without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from patchcast.interop.imagegpt_weights import from_transformers, options_of
from patchcast.interop.mae_weights import FROM_TRANSFORMERS, OURS, join_qkv
from patchcast.interop.state_dicts import check_positions, read_folder
from patchcast.starts.start import Start

VIT, DINOV3 = "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight"
LANDMARKS = (VIT, DINOV3)
"""A name that every file of a naming convention of transformers contains, after a prefix."""
# For DINOv2 and DINOv3, besides those of ViT and MAE. Final norms, heads and mask tokens are not in the rules.
TO_TIMM = (
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
ENCODER = re.compile(r"^(cls_token|reg_token|pos_embed|patch_embed\..*|blocks\..*|norm\..*)$")
DECODER = re.compile(r"^(decoder_|mask_token$)")


def from_transformers_folder(folder: Path, config: Mapping[str, Any], words: str) -> Start:
    """The weights of a folder whose `config.json` names a `model_type`.

    Raises:
        FileNotFoundError: if the folder holds no weights.
        ValueError: if neither timm nor this library has a network of this type.
    """
    kind = str(config["model_type"])
    if kind not in _READERS:
        raise ValueError(f"{words} holds transformers' {kind!r}; those that can be read are {', '.join(_READERS)}")
    wanted = "silu" if config.get("use_gated_mlp") else "gelu"
    # DINOv2's gated networks compute silu whatever the config says, and ImageGPT's activation is an option of ours.
    if kind != "imagegpt" and not config.get("use_swiglu_ffn") and config.get("hidden_act", wanted) != wanted:
        raise ValueError(f"{words} has hidden_act={config['hidden_act']!r}; timm's network of {kind} has {wanted!r}")
    return _READERS[kind](read_folder(folder), config, words, folder)


def vit_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of transformers' ViTs to timm's names, and MAE's decoder to the paper's."""
    found = {}
    for name, value in state.items():
        # The prefix before these is the name of the encoder in a larger model: vit, dinov2, ...
        match = re.search(r"(^|\.)(embeddings|encoder\.layer|layers?|layernorm|norm)\.", name)
        if match and not name.startswith("decoder."):
            name = name[match.start(2) :]
        if name.startswith("layer."):  # DINOv3's
            name = f"encoder.{name}"
        found[_rename(name)] = value
    # DINOv3 has no bias of keys: `dinov3_names` reads the others.
    unlike = [name for name in found if re.search(r"\.attn\.[qv]\.bias$", name) and _key(name) not in found]
    found = join_qkv({name: value for name, value in found.items() if name not in unlike})
    if "reg_token" in found and "pos_embed" in found:  # timm adds the first position to the class token beforehand
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return {name: value for name, value in found.items() if ENCODER.match(name) or DECODER.match(name)}


def _key(name: str) -> str:
    return re.sub(r"[qv]\.bias$", "k.bias", name)


def mae_parts(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder of an MAE file, by our names; empty if there is none, or if its positions differ from ours."""
    try:
        check_positions(named.get("decoder_pos_embed"), "it")
    except ValueError:
        return {}
    parts = {}
    for name, value in named.items():
        first, dot, rest = name.partition(".")
        if first in OURS:
            parts[f"{OURS[first]}{dot}{rest}"] = value.flatten() if name == "mask_token" else value
    return parts if "predictor.mask_token" in parts else {}


def dinov3_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of transformers' DINOv3 to the names of timm's `Eva`."""
    is_gated = any(".gate_proj." in name for name in state)
    encoder = {}
    for name, value in vit_names(state).items():
        if not DECODER.match(name):
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
            encoder[name if is_gated else name.replace(".fc1_x.", ".fc1.")] = value
    for name, value in state.items():
        if match := re.search(r"layer\.(\d+)\.attention\.([qv])_proj\.bias$", name):
            encoder[f"blocks.{match[1]}.attn.{match[2]}_bias"] = value
    if "reg_token" in encoder and encoder["reg_token"].shape[1] == 0:
        del encoder["reg_token"]
    return encoder


def _rename(name: str) -> str:
    if name in ("embeddings.mask_token", "embeddings.patch_embeddings.weight", "embeddings.patch_embeddings.bias"):
        return name.replace("embeddings.patch_embeddings.", "patch_embed.proj.")
    for pattern, replacement in (*FROM_TRANSFORMERS, *TO_TIMM):
        name = re.sub(pattern, replacement, name)
    return name


def _vit(state: dict[str, Tensor], config: Mapping[str, Any], words: str, folder: Path) -> Start:
    named = vit_names(state)
    encoder = {name: value for name, value in named.items() if ENCODER.match(name)}
    parts = mae_parts(named)
    kind, size = str(config["model_type"]), _pair(config.get("image_size", 224))
    hidden = config.get("intermediate_size") or config["hidden_size"] * config.get("mlp_ratio", 4)
    args: dict[str, Any] = {
        "img_size": list(size),
        "patch_size": config.get("patch_size", 16),
        "in_chans": config.get("num_channels", 3),
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": hidden / config["hidden_size"],
        "qkv_bias": config.get("qkv_bias", True),
    }
    if kind == "ijepa":
        args |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if kind.startswith("dinov2"):
        args |= {"init_values": 1e-5}
        if "reg_token" in encoder:
            args |= {"reg_tokens": encoder["reg_token"].shape[1], "no_embed_class": True}
    architecture = "vit_base_patch16_224"
    if config.get("use_swiglu_ffn"):
        architecture = "vit_giant_patch14_dinov2"
        args["mlp_ratio"] = encoder["blocks.0.mlp.fc1.weight"].shape[0] / config["hidden_size"]
    return Start(
        words,
        f"transformers' {kind}",
        encoder,
        parts,
        method="mae" if parts else None,
        architecture=architecture,
        model_args=args,
        size=size,
        heads=config["num_attention_heads"],
        eps=config.get("layer_norm_eps", 1e-12),
        left_out=_others(state),
        **_normalization(folder),
    )


def _dinov3(state: dict[str, Tensor], config: Mapping[str, Any], words: str, folder: Path) -> Start:
    encoder = dinov3_names(state)
    is_gated = config.get("use_gated_mlp", False)
    is_biased = any(name.endswith(".attn.q_bias") for name in encoder)
    size = _pair(config.get("image_size", 224))
    return Start(
        words,
        "transformers' dinov3_vit",
        encoder,
        architecture=f"vit_small{'_plus' * is_gated}_patch16_dinov3{'_qkvb' * is_biased}",
        model_args={
            "img_size": list(size),
            "patch_size": config.get("patch_size", 16),
            "in_chans": config.get("num_channels", 3),
            "embed_dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
            "num_reg_tokens": config.get("num_register_tokens", 0),
        },
        size=size,
        heads=config["num_attention_heads"],
        eps=config.get("layer_norm_eps", 1e-5),
        left_out=_others(state),
        **_normalization(folder),
    )


def _imagegpt(state: dict[str, Tensor], config: Mapping[str, Any], words: str, folder: Path) -> Start:
    weights = from_transformers(state)
    side = isqrt(len(weights.network["positions"]))
    palette = folder / "preprocessor_config.json"
    return Start(
        words,
        "transformers' imagegpt",
        weights.network,
        {} if weights.head is None else {"predictor.project.weight": weights.head},
        method="imagegpt",
        architecture="imagegpt",
        model_args={
            "depth": config.get("n_layer", 24),
            "width": config.get("n_embd", 512),
            "heads": config.get("n_head", 8),
            **({} if config.get("n_inner") is None else {"mlp_width": config["n_inner"]}),
            **options_of(config),
        },
        size=(side, side),
        heads=config.get("n_head", 8),
        tokenizer=palette if palette.is_file() else None,
        left_out=("score.weight",) if weights.score is not None else (),
    )


def _others(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names that do not belong to an encoder: poolers and classifiers."""
    return tuple(name for name in state if name.startswith(("classifier", "pooler")) or ".pooler." in name)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _normalization(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of transformers' image processor, if the folder contains its config."""
    file = folder / "preprocessor_config.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not known.get("do_normalize", True) or "image_mean" not in known or "image_std" not in known:
        return {}
    return {name: tuple(map(float, known[f"image_{name}"])) for name in ("mean", "std")}


_Reader = Callable[[dict[str, Tensor], Mapping[str, Any], str, Path], Start]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(("vit", "deit", "vit_mae", "ijepa", "dinov2", "dinov2_with_registers"), _vit),
    "dinov3_vit": _dinov3,
    "imagegpt": _imagegpt,
}
