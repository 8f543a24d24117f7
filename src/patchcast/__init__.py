"""Generative self-supervised pretraining of vision transformers.

The public API is available here: `patchcast.wrap`, `patchcast.mae`, `patchcast.Pretrainer`, ... A name is imported
when it is first used, so that `import patchcast` loads neither torch nor timm. See docs/api/stable.md for the names
that are stable.

>>> import patchcast
>>> patchcast.mae("test_vit").plan
RandomMask(ratio=0.75)
"""

# ruff: noqa: F401  # the imports are for type checkers and editors; tests/test_public.py holds _HOMES to them

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from patchcast import (
        backbones,
        data,
        drawing,
        evaluation,
        geometry,
        honesty,
        interop,
        losses,
        methods,
        plans,
        predictors,
        targets,
        tokenizers,
        views,
    )
    from patchcast.backbones.adapters import wrap
    from patchcast.backbones.aim_network import AIM_SIZES, aim_args, aim_vit
    from patchcast.backbones.backbone import Backbone, CannotError, Tokens
    from patchcast.backbones.imagegpt_network import IMAGEGPT_SIZES, ImageGPT, ImageGPTBackbone
    from patchcast.backbones.painted import Painted
    from patchcast.backbones.start_positions import start_from_sincos
    from patchcast.backbones.tile_geometry import assemble, tile_crop
    from patchcast.backbones.tiled import ClassProjection, Tiled
    from patchcast.collapse import CollapseWarning, Diversity, diversity, warn_of_collapse
    from patchcast.data import (
        Augment,
        EpochSampler,
        EvalSet,
        Evaluate,
        Images,
        TrainSet,
        channel_statistics,
        loader,
        open_images,
    )
    from patchcast.data.stores import Store
    from patchcast.data.tiles import FitTiles, best_canvas, stack
    from patchcast.drawing.completion import complete_pixels
    from patchcast.drawing.figures import Version, draw_dependencies, draw_loss, draw_versions
    from patchcast.drawing.generation import complete, sample
    from patchcast.drawing.reconstruction import Reconstruction, reconstruct
    from patchcast.drawing.sheets import save_drawing, save_grid
    from patchcast.evaluation import (
        Features,
        alpha_req,
        attentive_probe,
        extract,
        extract_layers,
        extract_tokens,
        few_labels,
        finetune,
        knn_probe,
        lidar,
        linear_probe,
        rankme,
        raw_pixels,
    )
    from patchcast.evaluation.dense import dense_probe
    from patchcast.evaluation.layer_probe import draw_layers, extract_imagegpt_layers, probe_layers
    from patchcast.evaluation.ngrams import bits_per_pixel, floors
    from patchcast.files import read_weights
    from patchcast.geometry import Grid, valid_share
    from patchcast.honesty import Leak, Verdict, dependencies, examine, no_leak, noise_floor
    from patchcast.interop import (
        load_aim,
        load_aim_probe,
        load_ijepa,
        load_imagegpt,
        load_mae,
        mae_from_transformers,
        save_imagegpt,
        save_imagegpt_classifier,
        save_mae,
    )
    from patchcast.interop.graph import save_onnx, save_torch
    from patchcast.interop.stable_pretraining import iGPT
    from patchcast.interop.torchtune_modules import TorchtuneVisionTransformer
    from patchcast.interop.torchtune_weights import TorchtuneViT, load_torchtune, to_torchtune
    from patchcast.joint import JointClassifier
    from patchcast.losses import absolute, cosine, cross_entropy, smooth_l1, squared
    from patchcast.methods import (
        METHODS,
        ORDERS,
        Method,
        aim,
        aim_codes,
        aim_features,
        beit,
        data2vec,
        distill,
        ijepa,
        imagegpt,
        imagegpt_masked,
        mae,
        maskfeat,
        nepa,
        on_codes,
        simmim,
    )
    from patchcast.mim import MaskedImageModelingWrapper, patch_model_for_mim
    from patchcast.modes import eval_mode, evaluating
    from patchcast.objectives import Objective, Predictors, SumOfLosses, Targets, sum_of
    from patchcast.plans import (
        BlockMask,
        FixedOrder,
        FromStart,
        GridMask,
        InverseBlockMask,
        MaskPlan,
        MultiBlock,
        OrderPlan,
        Plan,
        Planner,
        RandomMask,
        RandomOrder,
        RasterOrder,
        SeenToo,
        StartPlan,
        coarse_to_fine,
        hilbert,
        raster,
        snake,
    )
    from patchcast.predictors import (
        ConvDecoder,
        Decoder,
        LinearHead,
        MLPHead,
        NeighborHead,
        NoHead,
        Predictor,
        TargetQuery,
    )
    from patchcast.pretrainer import Output, Pretrainer
    from patchcast.starts import Started, load_start, read_start
    from patchcast.targets import (
        HOG,
        Codes,
        EMAFeatures,
        Embeddings,
        FrozenFeatures,
        Pixels,
        Target,
        patchify,
        unpatchify,
    )
    from patchcast.tokenizers.base import Tokenizer
    from patchcast.tokenizers.encoded import AsItIs, Unchanged, encode_images
    from patchcast.tokenizers.palette import Palette, fit_palette
    from patchcast.tokenizers.patches import PatchCodebook
    from patchcast.views import Attend, Blank, Context, Drop, Paint, Replace, Shift, View

_MODULES = (
    "backbones", "data", "drawing", "evaluation", "geometry", "honesty", "interop", "losses", "methods", "plans",
    "predictors", "targets", "tokenizers", "views",
)  # fmt: skip

_HOMES = {
    "backbones.adapters": ("wrap",),
    "backbones.aim_network": ("AIM_SIZES", "aim_args", "aim_vit"),
    "backbones.backbone": ("Backbone", "CannotError", "Tokens"),
    "backbones.imagegpt_network": ("IMAGEGPT_SIZES", "ImageGPT", "ImageGPTBackbone"),
    "backbones.painted": ("Painted",),
    "backbones.start_positions": ("start_from_sincos",),
    "backbones.tile_geometry": ("assemble", "tile_crop"),
    "backbones.tiled": ("ClassProjection", "Tiled"),
    "collapse": ("CollapseWarning", "Diversity", "diversity", "warn_of_collapse"),
    "data": (
        "Augment",
        "EpochSampler",
        "EvalSet",
        "Evaluate",
        "Images",
        "TrainSet",
        "channel_statistics",
        "loader",
        "open_images",
    ),
    "data.stores": ("Store",),
    "data.tiles": ("FitTiles", "best_canvas", "stack"),
    "drawing.completion": ("complete_pixels",),
    "drawing.figures": ("Version", "draw_dependencies", "draw_loss", "draw_versions"),
    "drawing.generation": ("complete", "sample"),
    "drawing.reconstruction": ("Reconstruction", "reconstruct"),
    "drawing.sheets": ("save_drawing", "save_grid"),
    "evaluation": (
        "Features",
        "alpha_req",
        "attentive_probe",
        "extract",
        "extract_layers",
        "extract_tokens",
        "few_labels",
        "finetune",
        "knn_probe",
        "lidar",
        "linear_probe",
        "rankme",
        "raw_pixels",
    ),
    "evaluation.dense": ("dense_probe",),
    "evaluation.layer_probe": ("draw_layers", "extract_imagegpt_layers", "probe_layers"),
    "evaluation.ngrams": ("bits_per_pixel", "floors"),
    "files": ("read_weights",),
    "geometry": ("Grid", "valid_share"),
    "honesty": ("Leak", "Verdict", "dependencies", "examine", "no_leak", "noise_floor"),
    "interop": (
        "load_aim",
        "load_aim_probe",
        "load_ijepa",
        "load_imagegpt",
        "load_mae",
        "mae_from_transformers",
        "save_imagegpt",
        "save_imagegpt_classifier",
        "save_mae",
    ),
    "interop.graph": ("save_onnx", "save_torch"),
    "interop.stable_pretraining": ("iGPT",),
    "interop.torchtune_modules": ("TorchtuneVisionTransformer",),
    "interop.torchtune_weights": ("TorchtuneViT", "load_torchtune", "to_torchtune"),
    "joint": ("JointClassifier",),
    "losses": ("absolute", "cosine", "cross_entropy", "smooth_l1", "squared"),
    "methods": (
        "METHODS",
        "ORDERS",
        "Method",
        "aim",
        "aim_codes",
        "aim_features",
        "beit",
        "data2vec",
        "distill",
        "ijepa",
        "imagegpt",
        "imagegpt_masked",
        "mae",
        "maskfeat",
        "nepa",
        "on_codes",
        "simmim",
    ),
    "modes": ("eval_mode", "evaluating"),
    "mim": ("MaskedImageModelingWrapper", "patch_model_for_mim"),
    "objectives": ("Objective", "Predictors", "SumOfLosses", "Targets", "sum_of"),
    "plans": (
        "BlockMask",
        "FixedOrder",
        "FromStart",
        "GridMask",
        "InverseBlockMask",
        "MaskPlan",
        "MultiBlock",
        "OrderPlan",
        "Plan",
        "Planner",
        "RandomMask",
        "RandomOrder",
        "RasterOrder",
        "SeenToo",
        "StartPlan",
        "coarse_to_fine",
        "hilbert",
        "raster",
        "snake",
    ),
    "predictors": (
        "ConvDecoder",
        "Decoder",
        "LinearHead",
        "MLPHead",
        "NeighborHead",
        "NoHead",
        "Predictor",
        "TargetQuery",
    ),
    "pretrainer": ("Output", "Pretrainer"),
    "starts": ("Started", "load_start", "read_start"),
    "targets": (
        "HOG",
        "Codes",
        "EMAFeatures",
        "Embeddings",
        "FrozenFeatures",
        "Pixels",
        "Target",
        "patchify",
        "unpatchify",
    ),
    "tokenizers.base": ("Tokenizer",),
    "tokenizers.encoded": ("AsItIs", "Unchanged", "encode_images"),
    "tokenizers.palette": ("Palette", "fit_palette"),
    "tokenizers.patches": ("PatchCodebook",),
    "views": ("Attend", "Blank", "Context", "Drop", "Paint", "Replace", "Shift", "View"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Import a name on first use and cache it (PEP 562)."""
    if name in _MODULES:
        return import_module(f"patchcast.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'patchcast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"patchcast.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
