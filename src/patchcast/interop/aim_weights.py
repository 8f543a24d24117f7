"""AIM checkpoints in the published format: trunks and their attentive probes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from patchcast.backbones.backbone import Backbone
from patchcast.evaluation.attentive import AttentiveProbe
from patchcast.files import read_weights
from patchcast.interop.state_dicts import load_exactly, without_module
from patchcast.positions import sincos_positions

TRUNK = (
    (r"^preprocessor\.patchifier\.", "patch_embed."),
    (r"^trunk\.blocks\.", "blocks."),
    (r"\.norm_([12])\.", r".norm\1."),
    (r"^trunk\.post_trunk_norm\.", "norm."),
)
PROBE = {
    "cls_token": "query",
    "k.weight": "key.weight",
    "v.weight": "value.weight",
    "linear.weight": "classify.weight",
    "bn.running_mean": "norm.running_mean",
    "bn.running_var": "norm.running_var",
    "bn.num_batches_tracked": "norm.num_batches_tracked",
}


def load_aim(backbone: Backbone, path: str | Path) -> None:
    """Load a trunk in AIM's published format into a timm ViT of its size. A probe in the same file is ignored.

    `backbone.model.state_dict()` loads into `timm.create_model` with `aim_args(size)`. The format has no positions:
    they are computed for the grid of the backbone.

    >>> from patchcast.backbones import wrap
    >>> from patchcast.backbones.aim_network import aim_vit
    >>> backbone = wrap(aim_vit("0.6B", embed_dim=64, depth=1, num_heads=2))
    >>> load_aim(backbone, "aim_600m.pth")
    Traceback (most recent call last):
    FileNotFoundError: ...

    Raises:
        ValueError: if the checkpoint does not fit; nothing is loaded then.
    """
    state = {}
    for name, value in without_module(read_weights(path)).items():
        if not name.startswith("head."):
            for pattern, ours in TRUNK:
                name = re.sub(pattern, ours, name)
            state[name] = value
    if not state:
        raise ValueError(f"{path} holds no trunk; use load_aim_probe for the files of AIM's heads")
    grid = backbone.grid(backbone.image_size)
    state["pos_embed"] = sincos_positions(grid, backbone.width)[None]
    load_exactly(backbone.model, state, source=str(path), fresh=tuple(backbone.unused()))


def load_aim_probe(path: str | Path, *, heads: int) -> AttentiveProbe:
    """The attentive probe in a file of AIM's published format, in eval mode.

    Its input is the mean of the raw outputs of six blocks: `extract_tokens(backbone, ..., blocks=6)` for files of the
    last layers; of the best layers, blocks 14 to 19 for 0.6B and 7B and 12 to 17 for 1B and 3B, counted from 0.

    Args:
        heads: the trunk's number of heads, which the file does not contain.
    Raises:
        ValueError: if the file holds no probe.
    """
    weights: dict[str, Tensor] = without_module(read_weights(path))
    state = {PROBE.get(name, name): value for name, value in _heads(weights).items()}
    if not {"query", "classify.weight"} <= state.keys():
        raise ValueError(f"{path} holds no probe: it lacks head.cls_token or head.linear.weight")
    state["query"] = state["query"].flatten(0, -2)
    classes, width = state["classify.weight"].shape
    with torch.device("meta"):
        probe = AttentiveProbe(width, heads, classes)
    load_exactly(probe.to_empty(device="cpu"), state, source=str(path))
    return probe.eval()


def _heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
