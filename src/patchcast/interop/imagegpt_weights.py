"""ImageGPT's weights in transformers' folders and in OpenAI's arrays, in and out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.files import read_weights, write_text, write_weights
from patchcast.geometry import Grid
from patchcast.joint import JointClassifier
from patchcast.methods.imagegpt import imagegpt
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.base import Tokenizer
from patchcast.tokenizers.palette import Palette

ARITHMETIC = {
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": False,
}
"""What transformers' config may change about the network, and the only values that ours can take."""

BICUBIC = 3
"""Pillow's number for it, `Image.Resampling.BICUBIC`."""


@dataclass(frozen=True)
class Weights:
    """A network with its head, in the names of this library.

    Attributes:
        network: a `state_dict` of `ImageGPT`.
        head: one row for each code.
    """

    network: dict[str, Tensor]
    head: Tensor


def load_imagegpt(folder: str | Path, *, tokenizer: Tokenizer | None = None, grid: Grid | None = None) -> Pretrainer:
    """Read a folder of transformers' `ImageGPTForCausalImageModeling.save_pretrained`, without transformers.

    Biases that are all zero are left out, as in the original network; transformers' dropout is not taken over, as the
    paper uses none.

    Args:
        tokenizer: of the images; if None, the palette of colours in `preprocessor_config.json`.
        grid: rows and columns of codes; if None, the square with as many codes as the network has positions.
    Raises:
        ValueError: if the network computes something that ours does not, if there is no palette, or if the number of
            positions fits no square or not the given grid.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "imagegpt":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, not 'imagegpt'")
    for name, value in ARITHMETIC.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder} has {name}={config[name]!r}; ours computes {name}={value!r} only")
    if tokenizer is None:
        tokenizer = _read_palette(folder)
    file = folder / "model.safetensors"
    state = read_weights(file if file.exists() else folder / "pytorch_model.bin")
    weights = from_transformers(state)
    positions = len(weights.network["positions"])
    side = isqrt(positions)
    if grid is None and side * side != positions:
        raise ValueError(f"{folder} has {positions} positions, which are no square; give the grid")
    channels = tokenizer.channels if isinstance(tokenizer, Palette) else 3
    return assemble(weights, tokenizer, heads=config.get("n_head", 8), grid=grid or Grid(side, side), channels=channels)


def save_imagegpt(pretrainer: Pretrainer, folder: str | Path, *, squash: bool = True) -> None:
    """Write what transformers' `ImageGPTForCausalImageModeling.from_pretrained` reads, palette included.

    The last row of its embedding is our start token; where ours has no biases, its are zero. A palette of greys is
    written with three equal channels, because transformers' processor knows colors only: give it grey images then.

    Args:
        squash: how images came to the network's size in training: `Evaluate(..., squash=True)`, which transformers'
            processor does to the bit; or False, by cutting their center out. Its torchvision backend does that for a
            square size, to a pixel in the longer side of the resized image; its Pillow backend does not.
    Raises:
        ValueError: if the pretrainer is no causal ImageGPT.
    """
    network, head, tokenizer = _parts(pretrainer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    depth, width, heads = network.size
    config = ARITHMETIC | {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "model_type": "imagegpt",
        "vocab_size": network.vocabulary + 1,
        "n_positions": network.grid.units,
        "n_embd": width,
        "n_layer": depth,
        "n_head": heads,
        "n_inner": None if network.mlp_width == 4 * width else network.mlp_width,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "dtype": str(head.dtype).removeprefix("torch."),
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    state = to_transformers(Weights(network.state_dict(), head))
    write_weights({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    if isinstance(tokenizer, Palette):
        processor = to_processor(tokenizer, network.grid, squash=squash)
        write_text(folder / "preprocessor_config.json", json.dumps(processor) + "\n")


def to_processor(palette: Palette, grid: Grid, *, squash: bool) -> dict[str, Any]:
    """The config of transformers' `ImageGPTImageProcessor` that makes the codes of a palette.

    It can cut the center out of an image for a square size only. For others it is set to resize nothing, so that it
    takes images of the network's size, and larger ones do not silently become other codes.
    """
    size = {"height": grid.rows, "width": grid.cols}
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": palette.colours.cpu().expand(-1, 3).tolist(),
        "do_color_quantize": True,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": squash or grid.rows == grid.cols,
        "resample": BICUBIC,
        "size": size if squash else {"shortest_edge": grid.rows},
        "do_center_crop": not squash,
        "crop_size": size,
    }


def save_imagegpt_classifier(model: JointClassifier, folder: str | Path, *, squash: bool = True) -> None:
    """Write what transformers' `ImageGPTForImageClassification.from_pretrained` reads, palette included.

    It averages over what it is fed, which has to be what ours is: the start token, and all codes but the last.

    Raises:
        ValueError: if the model's network is no causal ImageGPT.
    """
    folder = Path(folder)
    save_imagegpt(model.pretrainer, folder, squash=squash)
    config = json.loads((folder / "config.json").read_text())
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
    """From the names and layouts of transformers' `ImageGPTForCausalImageModeling`.

    Raises:
        ValueError: if a weight has no place here.
    """
    # Older files carry the causal mask, a buffer called attn.bias.
    state = {name: value for name, value in state.items() if not re.search(r"\.attn\.(masked_)?bias$", name)}
    table = state["transformer.wte.weight"]
    network = {
        "codes.weight": table[:-1].clone(),
        "start": table[-1].clone(),
        "positions": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
    }
    taken = {f"transformer.{name}.weight" for name in ("wte", "wpe", "ln_f")} | {"lm_head.weight"}
    biases: dict[str, Tensor] = {}
    for layer in range(_depth(state, r"transformer\.h\.(\d+)\.")):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for name, value in state.items():
            if name.startswith(theirs):
                part, kind = name.removeprefix(theirs).rsplit(".", 1)
                if part not in LINEAR and part not in NORMS:
                    raise ValueError(f"{name} has no place in this library's ImageGPT")
                taken.add(name)
                if part in NORMS:
                    network[f"{ours}{NORMS[part]}.weight"] = value
                elif kind == "weight":
                    network[f"{ours}{LINEAR[part]}.weight"] = value.T.contiguous()
                else:
                    biases[f"{ours}{LINEAR[part]}.bias"] = value
    if any(bool(bias.any()) for bias in biases.values()):
        network |= biases
    if unknown := sorted(set(state) - taken):
        raise ValueError(f"{unknown[0]} has no place in this library's ImageGPT")
    return Weights(network, state["lm_head.weight"])


def to_transformers(weights: Weights) -> dict[str, Tensor]:
    """To the names and layouts of transformers' `ImageGPTForCausalImageModeling`."""
    network = weights.network
    state = {
        "transformer.wte.weight": torch.cat([network["codes.weight"], network["start"][None]]),
        "transformer.wpe.weight": network["positions"],
        "transformer.ln_f.weight": network["norm.weight"],
        "lm_head.weight": weights.head,
    }
    for layer in range(_depth(network, r"blocks\.(\d+)\.")):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for part, own in NORMS.items():
            state[f"{theirs}{part}.weight"] = network[f"{ours}{own}.weight"]
        for part, own in LINEAR.items():
            weight = network[f"{ours}{own}.weight"]
            state[f"{theirs}{part}.weight"] = weight.T.contiguous()
            state[f"{theirs}{part}.bias"] = network.get(f"{ours}{own}.bias", weight.new_zeros(len(weight)))
    return state


def from_openai(arrays: Mapping[str, np.ndarray]) -> tuple[Weights, int]:
    """From the variables of OpenAI's TensorFlow checkpoints (`model/h0/attn/q_proj` and so on), and their heads.

    Read them with `tf.train.load_checkpoint(path).get_tensor(name)`. Optimiser state and the classifier (`clf`) are
    left out.

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
        qkv = [state[f"{theirs}attn/{each}_proj"].reshape(width, width) for each in "qkv"]
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
    """To the names and layouts of OpenAI's checkpoints.

    Raises:
        ValueError: if there are biases, which theirs has no place for.
    """
    network = weights.network
    if any(name.endswith(".bias") for name in network):
        raise ValueError("this network has biases; OpenAI's has none, so that they would be lost")
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
        for each, part in zip("qkv", network[f"{ours}attn.qkv.weight"].chunk(3), strict=True):
            state[f"{theirs}attn/{each}_proj"] = part.reshape(heads, width // heads, width)
        state |= {
            f"{theirs}ln_1/g": network[f"{ours}norm1.weight"],
            f"{theirs}ln_2/g": network[f"{ours}norm2.weight"],
            f"{theirs}attn/c_proj": network[f"{ours}attn.proj.weight"].T.reshape(heads, width // heads, width),
            f"{theirs}mlp/c_fc/w": network[f"{ours}mlp.fc1.weight"].T,
            f"{theirs}mlp/c_proj/w": network[f"{ours}mlp.fc2.weight"].T,
        }
    return {f"model/{name}": value.detach().cpu().numpy().copy() for name, value in state.items()}


def assemble(weights: Weights, tokenizer: Tokenizer, *, heads: int, grid: Grid, channels: int = 3) -> Pretrainer:
    """A pretrainer with these weights.

    Args:
        heads: of attention; the weights do not tell.
        grid: rows and columns of codes.
        channels: of the images that the tokenizer takes.
    Raises:
        ValueError: if the grid has not as many units as there are positions, or the tokenizer not as many codes.
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
    ).to(weights.head.dtype)
    model.load_state_dict(network)
    pretrainer = imagegpt(ImageGPTBackbone(model, tokenizer, channels=channels))
    pretrainer.predictor.to(weights.head.dtype).load_state_dict({"project.weight": weights.head})
    return pretrainer


NORMS = {"ln_1": "norm1", "ln_2": "norm2"}
LINEAR = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
"""transformers' names of a block's parts, and ours; its linear weights are (in, out), ours (out, in)."""


def _parts(pretrainer: Pretrainer) -> tuple[ImageGPT, Tensor, Tokenizer]:
    backbone = pretrainer.backbone
    if not isinstance(backbone, ImageGPTBackbone) or not backbone.model.causal:
        raise ValueError(f"{backbone.name} is no causal ImageGPT, and transformers has no other")
    head: Any = pretrainer.predictor
    return backbone.model, head.project.weight.detach(), backbone.tokenizer


def _read_palette(folder: Path) -> Palette:
    file = folder / "preprocessor_config.json"
    clusters = json.loads(file.read_text()).get("clusters") if file.exists() else None
    if clusters is None:
        raise ValueError(f"{folder} has no colours (clusters in preprocessor_config.json); give a tokenizer")
    colours = torch.tensor(clusters, dtype=torch.float32)
    is_grey = bool((colours == colours[:, :1]).all())
    return Palette(colours[:, :1] if is_grey else colours)


def _depth(names: Mapping[str, Any], pattern: str) -> int:
    """How many layers the names tell of."""
    return 1 + max(int(found[1]) for name in names if (found := re.match(pattern, name)))
