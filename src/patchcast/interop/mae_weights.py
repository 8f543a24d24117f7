"""MAE checkpoints: load the paper's and transformers' formats, save transformers'.

Both are converted to the names of the paper's files: timm's for the encoder, `decoder_*` and `mask_token` for the
decoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from patchcast.backbones import Backbone, wrap
from patchcast.files import read_json, read_weights, write_text, write_weights
from patchcast.interop.processors import processor_config
from patchcast.interop.state_dicts import (
    check_positions,
    fit_positions,
    heads,
    load_exactly,
    read_folder,
    without_module,
)
from patchcast.methods.mae import mae
from patchcast.plans import RandomMask
from patchcast.predictors import Decoder
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels

OURS = {
    "decoder_embed": "predictor.embed",
    "decoder_blocks": "predictor.blocks",
    "decoder_norm": "predictor.norm",
    "decoder_pred": "predictor.head",
    "mask_token": "predictor.mask_token",
}
# transformers has had three sets of names: those of its hub files, those of its modules since version 5, and those
# that version 5 writes (decoder_encoder).
FROM_TRANSFORMERS = (
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(vit\.)?(encoder\.layer|layers)\.", "blocks."),
    (r"^(vit\.)?layernorm\.", "norm."),
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
PAPER_NAMES = (
    r"cls_token|pos_embed|mask_token|decoder_pos_embed|(patch_embed\.proj|norm|decoder_(embed|norm|pred)"
    r"|(decoder_)?blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
UNSAID = {"qkv_bias": True, "mask_ratio": 0.75, "norm_pix_loss": False, "layer_norm_eps": 1e-12}  # transformers' own
TO_TRANSFORMERS = (
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"^norm\.", "vit.layernorm."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(decoder_(embed|norm|pred|pos_embed)|mask_token)", r"decoder.\1"),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def load_mae(pretrainer: Pretrainer, path: str | Path) -> bool:
    """Load an MAE checkpoint, of the paper's format or transformers', with its decoder if it has one.

    Encoder positions are resampled if the backbone's grid differs.

    >>> import tempfile
    >>> folder, pretrainer = tempfile.mkdtemp(), mae(wrap("test_vit", img_size=32))
    >>> save_mae(pretrainer, folder)
    True
    >>> load_mae(pretrainer, folder)
    True

    Args:
        pretrainer: of `patchcast.methods.mae`, over a plain timm ViT of the checkpoint's size.
        path: a file of `torch.save` or safetensors, or transformers' folder.
    Returns:
        whether the file has a decoder; if not, that of `pretrainer` is not changed.
    Raises:
        ValueError: if the checkpoint does not fit, or its decoder has other positions than sine-cosine ones.
    """
    path = Path(path)
    content: dict[str, Any] = read_folder(path) if path.is_dir() else read_weights(path)
    state = paper_names(without_module(content.get("model", content)))
    check_positions(state.pop("decoder_pos_embed", None), str(path))
    fit_positions(state, pretrainer.backbone)
    has_decoder = "mask_token" in state
    load_exactly(
        pretrainer,
        {our_name(name): value.flatten() if name == "mask_token" else value for name, value in state.items()},
        source=str(path),
        fresh=heads(pretrainer.backbone) + (() if has_decoder else ("predictor.",)),
    )
    return has_decoder


def mae_from_transformers(folder: str | Path) -> Pretrainer:
    """The pretrainer, including the backbone, of a folder of transformers' `ViTMAEForPreTraining`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save_mae(mae(wrap("test_vit", img_size=32), mask_ratio=0.5), folder)
    True
    >>> mae_from_transformers(folder).plan
    RandomMask(ratio=0.5)

    Raises:
        FileNotFoundError: if the folder holds no configuration or no weights.
        ValueError: if it holds an encoder only, or does not fit.
    """
    config = {**UNSAID, **read_json(Path(folder) / "config.json")}
    norm: Any = partial(nn.LayerNorm, eps=config["layer_norm_eps"])
    vit = VisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        in_chans=config["num_channels"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        qkv_bias=config["qkv_bias"],
        num_classes=0,
        norm_layer=norm,
    )
    pretrainer = mae(
        wrap(vit),
        mask_ratio=config["mask_ratio"],
        decoder_width=config["decoder_hidden_size"],
        decoder_depth=config["decoder_num_hidden_layers"],
        decoder_heads=config["decoder_num_attention_heads"],
        normalize=config["norm_pix_loss"],
    )
    for module in pretrainer.predictor.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = config["layer_norm_eps"]
    if not load_mae(pretrainer, folder):
        raise ValueError(f"{folder} holds an encoder only; wrap a timm ViT and use load_mae")
    return pretrainer


@torch.no_grad()
def save_mae(
    pretrainer: Pretrainer,
    folder: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    squash: bool = False,
) -> bool:
    """Write a folder for `from_pretrained` of transformers' `ViTMAEForPreTraining` and `ViTMAEModel`.

    Args:
        mean, std, squash: of the `Evaluate` that prepares images; given, `preprocessor_config.json` says the same to
            `AutoImageProcessor`.
    Returns:
        Whether the decoder is in it. `ViTMAEForPreTraining` has a `Decoder` that predicts `Pixels` under a
        `RandomMask`; of other pretrainers the encoder is written, for `ViTMAEModel`.
    Raises:
        ValueError: if the encoder is no plain ViT with a class token: transformers has no place for more.
    """
    backbone, decoder, plan, target = pretrainer.backbone, pretrainer.predictor, pretrainer.plan, pretrainer.target
    is_whole = isinstance(decoder, Decoder) and isinstance(plan, RandomMask) and isinstance(target, Pixels)
    grid, skip = backbone.grid(backbone.image_size), heads(backbone)
    kept = "" if is_whole else "backbone."
    state = {
        _paper_name(name): value
        for name, value in pretrainer.state_dict().items()
        if name.startswith(kept) and not name.startswith(skip)
    }
    if isinstance(decoder, Decoder) and is_whole:
        positions = decoder.positions(grid)
        state["decoder_pos_embed"] = torch.cat([torch.zeros_like(positions[:1]), positions])[None]
        state["mask_token"] = state["mask_token"].view(1, 1, -1)
    homeless = [name for name in state if not re.fullmatch(PAPER_NAMES, name)]
    if homeless or not {"cls_token", "norm.weight"} <= state.keys() or state["pos_embed"].shape[1] != grid.units + 1:
        extra = f"; it has no place for {homeless[0]}" if homeless else ""
        raise ValueError(f"transformers' ViTMAE is a plain ViT with one class token, and a final norm{extra}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {_rename(name, TO_TRANSFORMERS): value.contiguous() for name, value in split_qkv(state).items()}
    write_weights(renamed, folder / "model.safetensors")
    config = _config(backbone)
    if isinstance(decoder, Decoder) and isinstance(plan, RandomMask) and isinstance(target, Pixels):
        config |= {"architectures": ["ViTMAEForPreTraining"], **_decoder_config(decoder, plan, target)}
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    if mean is not None and std is not None:
        processor = processor_config("ViTImageProcessor", backbone.image_size, mean=mean, std=std, squash=squash)
        write_text(folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")
    return is_whole


def _config(backbone: Backbone) -> dict[str, Any]:
    model: Any = backbone.model
    block = model.blocks[0]
    (height, width), (down, right) = backbone.image_size, backbone.stride
    return {
        "architectures": ["ViTMAEModel"],
        "model_type": "vit_mae",
        "hidden_size": backbone.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": down if down == right else [down, right],
        "num_channels": backbone.channels,
        "qkv_bias": block.attn.qkv.bias is not None,
    }


def _decoder_config(decoder: Decoder, plan: RandomMask, target: Pixels) -> dict[str, Any]:
    decoder_block = cast(Any, decoder.blocks[0])
    return {
        "decoder_hidden_size": decoder.mask_token.numel(),
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": decoder_block.attn.num_heads,
        "decoder_intermediate_size": decoder_block.mlp.fc1.out_features,
        "mask_ratio": plan.ratio,
        "norm_pix_loss": target.normalize,
    }


def paper_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of the paper's files, from either format."""
    if any(name.startswith(("vit.", "embeddings.")) for name in state):
        return join_qkv({_rename(name, FROM_TRANSFORMERS): value for name, value in state.items()})
    return dict(state)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def our_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return f"{OURS[first]}{dot}{rest}" if first in OURS else f"backbone.model.{name}"


def _paper_name(name: str) -> str:
    for theirs, ours in OURS.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name.removeprefix("backbone.model.")


def join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = {name: value for name, value in state.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name in state:
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{letter}.")] for letter in "qkv"]
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return joined


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = {name: value for name, value in state.items() if ".attn.qkv." not in name}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                split[name.replace(".attn.qkv.", f".attn.{letter}.")] = part
    return split
