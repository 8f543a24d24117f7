"""ImageGPT's weights from and to transformers' folders and OpenAI's arrays."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.files import read_json, read_weights, write_text, write_weights
from patchcast.geometry import Grid
from patchcast.interop.processors import processor_config
from patchcast.interop.state_dicts import read_folder
from patchcast.joint import JointClassifier
from patchcast.methods.imagegpt import imagegpt
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.base import Tokenizer
from patchcast.tokenizers.encoded import Encoded
from patchcast.tokenizers.loading import palette_of_processor
from patchcast.tokenizers.palette import Palette

OPTIONS = {
    "activation_function": ("act", "quick_gelu"),
    "layer_norm_epsilon": ("eps", 1e-5),
    "embd_pdrop": ("embed_drop", 0.1),
    "attn_pdrop": ("attn_drop", 0.1),
    "resid_pdrop": ("proj_drop", 0.1),
    "scale_attn_weights": ("scale_attention", True),
    "scale_attn_by_inverse_layer_idx": ("scale_by_depth", False),
    "reorder_and_upcast_attn": ("attention_in_float32", False),
}
"""Fields of transformers' config that change the network: our names and their defaults."""


@dataclass(frozen=True)
class Weights:
    """The weights of a network and its heads, by this library's names.

    Attributes:
        network: a `state_dict` of `ImageGPT`.
        head: of the head that predicts codes, one row per code; None if there is none.
        score: of a classifier, one row per class or value; None if there is none.
    """

    network: dict[str, Tensor]
    head: Tensor | None = None
    score: Tensor | None = None


def load_imagegpt(folder: str | Path, *, tokenizer: Tokenizer | None = None, grid: Grid | None = None) -> Pretrainer:
    """Read a folder of any of transformers' three ImageGPT classes, without transformers; returns it in eval mode.

    Biases that are all zero are left out, as in the original network. All other options of the config are used,
    including dropout. A head tied to the embedding (`tie_word_embeddings`) becomes a separate head for the codes only:
    the start token is never predicted. A missing head is initialized to zero, with a warning. The head of a classifier
    is ignored; use `load_imagegpt_classifier` for it.

    Args:
        tokenizer: of the images; None for the palette in `preprocessor_config.json`.
        grid: rows and columns of codes; None for those of `preprocessor_config.json`, or a square.
    Raises:
        ValueError: if the config has options that ours does not have, there is no palette, or the number of positions
            does not match the grid or a square.
    """
    return _load(Path(folder), tokenizer, grid)[0]


def load_imagegpt_classifier(
    folder: str | Path, *, tokenizer: Tokenizer | None = None, grid: Grid | None = None
) -> JointClassifier:
    """Read a folder of transformers' `ImageGPTForImageClassification` or of `save_imagegpt_classifier`, in eval mode.

    These have no head that predicts codes: it is initialized to zero.

    Args:
        tokenizer, grid: as in `load_imagegpt`.
    Raises:
        ValueError: as `load_imagegpt`; or if there is no classifier, or it is for regression or several labels per
            image (see `patchcast.interop.transformers` for those).
    """
    folder = Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoHeadWarning)
        pretrainer, weights, config = _load(folder, tokenizer, grid)
    if weights.score is None:
        raise ValueError(f"{folder} has no classifier (score.weight); read it with load_imagegpt")
    kind = config.get("problem_type") or ("regression" if len(weights.score) == 1 else SINGLE_LABEL)
    if kind != SINGLE_LABEL:
        raise ValueError(
            f"{folder} has a head for {kind}, and a JointClassifier predicts one class; use "
            "ImageGPTForImageClassification of patchcast.interop.transformers"
        )
    model = JointClassifier(pretrainer, len(weights.score)).to(weights.score.dtype)
    model.head.load_state_dict({"weight": weights.score})
    return model.eval()


class NoHeadWarning(UserWarning):
    """The weights have no head that predicts codes."""


def _load(folder: Path, tokenizer: Tokenizer | None, grid: Grid | None) -> tuple[Pretrainer, Weights, dict[str, Any]]:
    config = read_config(folder)
    tokenizer = tokenizer or palette_of_processor(folder / "preprocessor_config.json")
    weights = from_transformers(read_folder(folder))
    channels = tokenizer.channels if isinstance(tokenizer, Palette) else 1 if isinstance(tokenizer, Encoded) else 3
    pretrainer = assemble_pretrainer(
        weights,
        tokenizer,
        heads=config.get("n_head", 8),
        grid=grid or _read_grid(folder, len(weights.network["positions"])),
        channels=channels,
        **options_of(config),
    )
    if weights.head is None and not config.get("tie_word_embeddings", False):
        classifier = "; its classifier is ignored: use load_imagegpt_classifier" if weights.score is not None else ""
        warnings.warn(
            f"{folder} has no head that predicts codes (lm_head): it is initialized to zero{classifier}",
            NoHeadWarning,
            stacklevel=3,
        )
    if config.get("tie_word_embeddings", False):
        head: Any = pretrainer.predictor
        head.load_state_dict({"project.weight": weights.network["codes.weight"]})
    return pretrainer.eval(), weights, config


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an ImageGPT.

    Raises:
        ValueError: if there is none, it is of another model, or it has options that our network does not have.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"there is no {file}; download a model from the hub first: huggingface_hub.snapshot_download")
    config = read_json(file)
    if config.get("model_type") != "imagegpt":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not 'imagegpt'")
    if config.get("add_cross_attention", False):
        raise ValueError(f"{folder} has add_cross_attention=True; our network attends to the image only")
    return config


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `ImageGPT` in a config of transformers."""
    return {ours: config.get(theirs, default) for theirs, (ours, default) in OPTIONS.items()}


SINGLE_LABEL = "single_label_classification"


def save_imagegpt(pretrainer: Pretrainer, folder: str | Path, *, squash: bool = True) -> None:
    """Write a folder for transformers' `ImageGPTForCausalImageModeling.from_pretrained`, including the palette.

    The last row of its embedding is our start token. If our network has no biases, they are written as zeros. A gray
    palette is written with three equal channels, because transformers' processor knows RGB only: give it gray images
    in RGB.

    Args:
        squash: how images came to the network's size in training: `Evaluate(..., squash=True)`, which transformers'
            processor reproduces exactly; or False, by a center crop. Its torchvision backend does that for a square
            size, up to one pixel in the longer side of the resized image; its Pillow backend does not.
    Raises:
        ValueError: if the pretrainer is not a causal ImageGPT.
    """
    network, head, tokenizer = _parts(pretrainer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    depth, width, heads = network.size
    config = {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "model_type": "imagegpt",
        "vocab_size": network.vocabulary + 1,
        "n_positions": network.grid.units,
        "n_embd": width,
        "n_layer": depth,
        "n_head": heads,
        "n_inner": None if network.mlp_width == 4 * width else network.mlp_width,
        **{theirs: _option(network, ours) for theirs, (ours, _) in OPTIONS.items()},
        "add_cross_attention": False,
        "tie_word_embeddings": False,
        "dtype": str(head.dtype).removeprefix("torch."),
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    state = to_transformers(Weights(network.state_dict(), head))
    write_weights({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    if isinstance(tokenizer, Palette):
        processor = to_processor(tokenizer, network.grid, squash=squash)
        write_text(folder / "preprocessor_config.json", json.dumps(processor) + "\n")


def to_processor(palette: Palette, grid: Grid, *, squash: bool) -> dict[str, Any]:
    """The config of transformers' `ImageGPTImageProcessor` for a palette."""
    half = (0.5, 0.5, 0.5)
    config = processor_config("ImageGPTImageProcessor", (grid.rows, grid.cols), mean=half, std=half, squash=squash)
    return config | {"clusters": palette.colors.cpu().expand(-1, 3).tolist(), "do_color_quantize": True}


def save_imagegpt_classifier(model: JointClassifier, folder: str | Path, *, squash: bool = True) -> None:
    """Write a folder for transformers' `ImageGPTForImageClassification.from_pretrained`, including the palette.

    It averages over its inputs, which must be those of our network: the start token, and all codes except the last.

    Raises:
        ValueError: if the model's network is not a causal ImageGPT.
    """
    folder = Path(folder)
    save_imagegpt(model.pretrainer, folder, squash=squash)
    config = read_json(folder / "config.json")
    classes = len(model.head.weight)
    config |= {
        "architectures": ["ImageGPTForImageClassification"],
        "id2label": {str(label): f"LABEL_{label}" for label in range(classes)},
        "label2id": {f"LABEL_{label}": label for label in range(classes)},
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    state = read_weights(folder / "model.safetensors")
    del state["lm_head.weight"]
    state["score.weight"] = model.head.weight.detach().cpu().contiguous()
    write_weights(state, folder / "model.safetensors")


def from_transformers(state: Mapping[str, Tensor]) -> Weights:
    """Convert weights from the names and layouts of transformers' ImageGPT (any of its three classes).

    Raises:
        ValueError: if a weight has no place here, or some are missing.
    """
    # Older files carry the causal mask, a buffer called attn.bias.
    state = {name: value for name, value in state.items() if not re.search(r"\.attn\.(masked_)?bias$", name)}
    if "wte.weight" in state:  # `ImageGPTModel` has the network alone
        state = {f"transformer.{name}": value for name, value in state.items()}
    ends = [f"transformer.{name}.weight" for name in ("wte", "wpe", "ln_f", "h.0.attn.c_attn")]
    if missing := [name for name in ends if name not in state]:
        raise ValueError(f"these are not weights of an ImageGPT: {missing[0]} is missing")
    table = state["transformer.wte.weight"]
    network = {
        "codes.weight": table[:-1].clone(),
        "start": table[-1].clone(),
        "positions": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
    }
    taken = {*ends, "lm_head.weight", "score.weight"}
    biases: dict[str, Tensor] = {}
    for layer in range(_depth(state, r"transformer\.h\.(\d+)\.")):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for name, value in state.items():
            if name.startswith(theirs):
                part, kind = name.removeprefix(theirs).rsplit(".", 1)
                if part not in LINEAR and part not in NORM_NAMES:
                    raise ValueError(f"{name} has no place in this library's ImageGPT")
                taken.add(name)
                if part in NORM_NAMES:
                    network[f"{ours}{NORM_NAMES[part]}.weight"] = value
                elif kind == "weight":
                    network[f"{ours}{LINEAR[part]}.weight"] = value.T.contiguous()
                else:
                    biases[f"{ours}{LINEAR[part]}.bias"] = value
    if any(bool(bias.any()) for bias in biases.values()):
        network |= biases
    if unknown := sorted(set(state) - taken):
        raise ValueError(f"{unknown[0]} has no place in this library's ImageGPT")
    head = state.get("lm_head.weight")
    # A tied head has a row for the start token too, which is never predicted.
    return Weights(network, None if head is None else head[: len(table) - 1], state.get("score.weight"))


def to_transformers(weights: Weights) -> dict[str, Tensor]:
    """Convert weights to the names and layouts of transformers' `ImageGPTForCausalImageModeling`, or of its
    `ImageGPTForImageClassification` if there is a `score`."""
    network = weights.network
    state = {
        "transformer.wte.weight": torch.cat([network["codes.weight"], network["start"][None]]),
        "transformer.wpe.weight": network["positions"],
        "transformer.ln_f.weight": network["norm.weight"],
    }
    if weights.head is not None:
        state["lm_head.weight"] = weights.head
    if weights.score is not None:
        state["score.weight"] = weights.score
    for layer in range(_depth(network, r"blocks\.(\d+)\.")):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for part, own in NORM_NAMES.items():
            state[f"{theirs}{part}.weight"] = network[f"{ours}{own}.weight"]
        for part, own in LINEAR.items():
            weight = network[f"{ours}{own}.weight"]
            state[f"{theirs}{part}.weight"] = weight.T.contiguous()
            state[f"{theirs}{part}.bias"] = network.get(f"{ours}{own}.bias", weight.new_zeros(len(weight)))
    return state


def from_openai(arrays: Mapping[str, np.ndarray]) -> tuple[Weights, int]:
    """Convert the variables of OpenAI's TensorFlow checkpoints (`model/h0/attn/q_proj` and so on); returns heads too.

    Read them with `tf.train.load_checkpoint(path).get_tensor(name)`. Optimizer state and the classifier (`clf`) are
    ignored.

    Raises:
        ValueError: if there is no start token: a checkpoint of the masked objective.
    """
    state = {
        name.removeprefix("model/"): torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()
    }
    if "sos" not in state:
        raise ValueError("these arrays have no start token (model/sos): they are of the masked objective")
    width = state["sos"].numel()
    network = {
        "codes.weight": state["wte"],
        "start": state["sos"],
        "positions": state["wpe"],
        "norm.weight": state["ln_f/g"],
    }
    for layer in range(_depth(state, r"h(\d+)/")):
        theirs, ours = f"h{layer}/", f"blocks.{layer}."
        # (head, channel, input): rows of a linear map's weight for q, k and v, columns for the projection.
        qkv = [state[f"{theirs}attn/{part}_proj"].reshape(width, width) for part in "qkv"]
        network |= {
            f"{ours}norm1.weight": state[f"{theirs}ln_1/g"],
            f"{ours}norm2.weight": state[f"{theirs}ln_2/g"],
            f"{ours}attn.qkv.weight": torch.cat(qkv),
            f"{ours}attn.proj.weight": state[f"{theirs}attn/c_proj"].reshape(width, width).T.contiguous(),
            f"{ours}mlp.fc1.weight": state[f"{theirs}mlp/c_fc/w"].T.contiguous(),
            f"{ours}mlp.fc2.weight": state[f"{theirs}mlp/c_proj/w"].T.contiguous(),
        }
    return Weights(network, state["wtet"]), len(state["h0/attn/q_proj"])


def to_openai(weights: Weights, heads: int) -> dict[str, np.ndarray]:
    """Convert weights to the names and layouts of OpenAI's checkpoints.

    Raises:
        ValueError: if there are biases, which OpenAI's network does not have.
    """
    network = weights.network
    if any(name.endswith(".bias") for name in network):
        raise ValueError("this network has biases, which would be lost: OpenAI's has none")
    if weights.head is None:
        raise ValueError("these weights have no head that predicts codes, and OpenAI's checkpoints have one")
    width = network["start"].numel()
    state = {
        "wte": network["codes.weight"],
        "sos": network["start"],
        "wpe": network["positions"],
        "ln_f/g": network["norm.weight"],
        "wtet": weights.head,
    }
    for layer in range(_depth(network, r"blocks\.(\d+)\.")):
        theirs, ours = f"h{layer}/", f"blocks.{layer}."
        for letter, part in zip("qkv", network[f"{ours}attn.qkv.weight"].chunk(3), strict=True):
            state[f"{theirs}attn/{letter}_proj"] = part.reshape(heads, width // heads, width)
        state |= {
            f"{theirs}ln_1/g": network[f"{ours}norm1.weight"],
            f"{theirs}ln_2/g": network[f"{ours}norm2.weight"],
            f"{theirs}attn/c_proj": network[f"{ours}attn.proj.weight"].T.reshape(heads, width // heads, width),
            f"{theirs}mlp/c_fc/w": network[f"{ours}mlp.fc1.weight"].T,
            f"{theirs}mlp/c_proj/w": network[f"{ours}mlp.fc2.weight"].T,
        }
    return {f"model/{name}": value.detach().cpu().numpy().copy() for name, value in state.items()}


def assemble_pretrainer(
    weights: Weights, tokenizer: Tokenizer, *, heads: int, grid: Grid, channels: int = 3, **options: Any
) -> Pretrainer:
    """A pretrainer with these weights; a missing head is initialized to zero.

    Args:
        heads: attention heads, which cannot be derived from the weights.
        grid: rows and columns of codes.
        channels: of the images that the tokenizer takes.
        options: of `ImageGPT`: activation, dropout and so on.
    Raises:
        ValueError: if the number of positions is not the grid's, or the number of codes not the tokenizer's.
    """
    network = weights.network
    positions, width = network["positions"].shape
    if grid.units != positions:
        raise ValueError(f"these weights have positions for {positions} codes; a {grid} grid has {grid.units}")
    model = ImageGPT(
        grid,
        len(network["codes.weight"]),
        depth=_depth(network, r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        mlp_width=len(network["blocks.0.mlp.fc1.weight"]),
        bias="blocks.0.attn.qkv.bias" in network,
        **options,
    ).to(network["positions"].dtype)
    model.load_state_dict(network)
    pretrainer = imagegpt(ImageGPTBackbone(model, tokenizer, channels=channels))
    pretrainer.predictor.to(network["positions"].dtype)
    if weights.head is not None:
        pretrainer.predictor.load_state_dict({"project.weight": weights.head})
    return pretrainer


NORM_NAMES = {"ln_1": "norm1", "ln_2": "norm2"}
LINEAR = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
"""transformers' names of a block's parts, and ours; its linear weights are (in, out), ours (out, in)."""


def _parts(pretrainer: Pretrainer) -> tuple[ImageGPT, Tensor, Tokenizer]:
    backbone = pretrainer.backbone
    if not isinstance(backbone, ImageGPTBackbone) or not backbone.model.causal:
        raise ValueError(f"{backbone.name} is not a causal ImageGPT, the only one that transformers has")
    head: Any = pretrainer.predictor
    return backbone.model, head.project.weight.detach(), backbone.tokenizer


def _option(network: ImageGPT, name: str) -> Any:
    value = getattr(network, name)
    return value.p if isinstance(value, nn.Dropout) else value


def _read_grid(folder: Path, positions: int) -> Grid:
    file, side = folder / "preprocessor_config.json", isqrt(positions)
    config = read_json(file) if file.exists() else {}
    size = config.get("size") if config.get("do_resize", True) else config.get("crop_size")
    if isinstance(size, dict) and size.get("height", 0) * size.get("width", 0) == positions:
        return Grid(size["height"], size["width"])
    if side * side != positions:
        raise ValueError(f"{folder} has {positions} positions, which are not a square; give the grid")
    return Grid(side, side)


def _depth(names: Mapping[str, Any], pattern: str) -> int:
    """The number of layers in these names."""
    return 1 + max(int(found[1]) for name in names if (found := re.match(pattern, name)))
