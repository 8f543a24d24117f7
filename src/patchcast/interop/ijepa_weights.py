"""I-JEPA checkpoints in the paper's format: encoder, predictor and target encoder."""

from __future__ import annotations

from pathlib import Path

from patchcast.files import read_weights
from patchcast.interop.state_dicts import check_positions, fit_positions, heads, load_exactly, without_module
from patchcast.predictors import Decoder
from patchcast.pretrainer import Pretrainer
from patchcast.targets import EMAFeatures

PREDICTOR = {
    "predictor_embed": "predictor.embed",
    "predictor_blocks": "predictor.blocks",
    "predictor_norm": "predictor.norm",
    "predictor_proj": "predictor.head",
    "mask_token": "predictor.mask_token",
}


def load_ijepa(pretrainer: Pretrainer, path: str | Path) -> None:
    """Load an I-JEPA checkpoint: student, predictor and teacher.

    The original's ViT has no class token and a final norm: `wrap("vit_huge_patch14_224", class_token=False,
    global_pool="avg", fc_norm=False)` for ViT-H/14, with `ijepa(backbone, predictor_width=384, predictor_depth=12,
    predictor_heads=16)`. The checkpoint does not contain the number of heads. Positions are resampled if
    the grid differs.

    Raises:
        ValueError: if the pretrainer is not an I-JEPA, or the checkpoint does not fit.
    """
    if not (isinstance(pretrainer.predictor, Decoder) and isinstance(pretrainer.target, EMAFeatures)):
        raise ValueError("an I-JEPA checkpoint needs a Decoder and EMAFeatures; see patchcast.methods.ijepa")
    content = read_weights(path)
    missing = {"encoder", "predictor", "target_encoder"} - content.keys()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; an I-JEPA checkpoint has all three parts")
    state = {}
    for part, prefix in (("encoder", "backbone.model"), ("target_encoder", "target.teacher.model")):
        encoder = without_module(content[part])
        fit_positions(encoder, pretrainer.backbone)
        state.update({f"{prefix}.{name}": value for name, value in encoder.items()})
    predictor = without_module(content["predictor"])
    check_positions(predictor.pop("predictor_pos_embed", None), str(path))
    for name, value in predictor.items():
        first, dot, rest = name.partition(".")
        state[f"{PREDICTOR.get(first, first)}{dot}{rest}"] = value.flatten() if first == "mask_token" else value
    unused = heads(pretrainer.backbone)
    teachers = tuple(name.replace("backbone.", "target.teacher.", 1) for name in unused)
    load_exactly(pretrainer, state, source=str(path), fresh=(*unused, *teachers, "target.step"))
