"""The list of methods that tests take theirs from: a small build of each, and of what may take a part's place in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from patchcast import methods
from patchcast.backbones import Backbone
from patchcast.backbones.capabilities import OWN_NETWORKS
from patchcast.losses import cross_entropy, smooth_l1, squared
from patchcast.objectives import Objective, sum_of
from patchcast.plans import RandomMask, RandomOrder, RasterOrder
from patchcast.predictors import Decoder, LinearHead
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes, EMAFeatures, FrozenFeatures, Pixels, patchify
from patchcast.views import Drop, Paint, Replace


class Signs:
    """A tokenizer of two codes, which are equally frequent on noise: is a unit brighter than the mean?"""

    vocabulary = 2

    def __init__(self, stride: tuple[int, int]) -> None:
        self.stride = stride

    def encode(self, images: Tensor) -> Tensor:
        return (patchify(images, self.stride).mean(dim=-1) > 0).long()


SMALL: dict[str, dict[str, Any]] = {
    "aim": {"head_width": 32, "head_depth": 2},
    "aim_codes": {"head_width": 32, "head_depth": 2},
    "aim_features": {"head_width": 32, "head_depth": 2},
    "beit": {},
    "data2vec": {"masks": 2, "decoder_depth": 2},
    "distill": {"decoder_width": 32, "decoder_depth": 1},
    "ijepa": {"predictor_depth": 2},
    "mae": {"decoder_width": 32, "decoder_depth": 2},
    "maskfeat": {},
    "nepa": {},
    "simmim": {},
}
"""What makes a method small, on any backbone. test_contracts.py asserts that no method is missing."""
OF_CODES = {"aim_codes", "beit"}
ON_ANY_BACKBONE = [name for name in methods.METHODS if name not in OWN_NETWORKS]
"""The command line's methods but for those that run on a network of their own: these have tests in tests/imagegpt."""


def small(method: str, backbone: Backbone, **options: Any) -> Pretrainer:
    """The method over the backbone, with a small predictor."""
    second: list[Any] = [Signs(backbone.stride)] if method in OF_CODES else []
    if method == "distill":
        second = [FrozenFeatures(copy.deepcopy(backbone), backbone.stride)]
    return getattr(methods, method)(backbone, *second, **{**SMALL[method], **options})


def painted(backbone: Backbone) -> Pretrainer:
    built = small("simmim", backbone)
    built.view = Paint()
    return built


def mae_of_a_teacher(backbone: Backbone) -> Pretrainer:
    built = small("mae", backbone)
    built.target, built.loss = EMAFeatures(backbone), smooth_l1
    built.predictor.head = nn.Linear(32, built.target.outputs)
    return built


def mae_and_a_teacher(backbone: Backbone) -> Pretrainer:
    """Pixels, codes and the features of a frozen teacher, each by a decoder of its own."""
    grid, width = backbone.grid(backbone.image_size), 32

    def decoder(outputs: int) -> Decoder:
        embed, head = nn.Linear(backbone.width, width), nn.Linear(width, outputs)
        return Decoder(width, grid=grid, depth=1, heads=1, embed=embed, head=head)

    pixels, codes = Pixels(backbone.stride, channels=backbone.channels), Codes(Signs(backbone.stride))
    teacher = FrozenFeatures(copy.deepcopy(backbone), backbone.stride)
    parts = sum_of(
        pixels=Objective(decoder(pixels.outputs), pixels, squared),
        codes=Objective(decoder(codes.outputs), codes, cross_entropy, weight=0.5),
        teacher=Objective(decoder(teacher.outputs), teacher, smooth_l1, weight=0.25),
    )
    return Pretrainer(backbone, plan=RandomMask(0.75), view=Drop(), **parts)


def mae_painted(backbone: Backbone) -> Pretrainer:
    built = small("mae", backbone)
    built.view = Paint()
    return built


def simmim_of_codes(backbone: Backbone) -> Pretrainer:
    built = small("simmim", backbone)
    built.target, built.loss = Codes(Signs(backbone.stride)), cross_entropy
    built.predictor = LinearHead(backbone.width, built.target.outputs)
    return built


def ijepa_by_replacement(backbone: Backbone) -> Pretrainer:
    built = small("ijepa", backbone)
    built.view = Replace(backbone.embed_width)
    return built


def data2vec_by_replacement(backbone: Backbone) -> Pretrainer:
    built = small("data2vec", backbone)
    built.view = Replace(backbone.embed_width)
    return built


def distill_by_replacement(backbone: Backbone) -> Pretrainer:
    built = small("distill", backbone)
    built.view = Replace(backbone.embed_width)
    return built


VARIANTS: dict[str, Callable[[Backbone], Pretrainer]] = {
    "simmim, painted": painted,
    "mae, painted": mae_painted,
    "mae, visible too": lambda backbone: small("mae", backbone, visible_weight=0.1),
    "mae, convolutions": lambda backbone: small("mae", backbone, decoder_kernel=3),
    "mae of a teacher": mae_of_a_teacher,
    "mae and a teacher": mae_and_a_teacher,
    "mae with a teacher": lambda backbone: small(
        "mae", backbone, teacher=FrozenFeatures(copy.deepcopy(backbone), backbone.stride), teacher_weight=0.5
    ),
    "distill by replacement": distill_by_replacement,
    "simmim of codes": simmim_of_codes,
    "simmim, convolutions": lambda backbone: small("simmim", backbone, head_kernel=3),
    "beit, convolutions": lambda backbone: small("beit", backbone, head_kernel=3, head_depth=1),
    "simmim, normalized": lambda backbone: small("simmim", backbone, head_kernel=3, normalize=True),
    "maskfeat, pixels too": lambda backbone: small("maskfeat", backbone, pixel_weight=0.5),
    "maskfeat, convolutions": lambda backbone: small("maskfeat", backbone, head_kernel=3, head_width=32),
    "nepa, pixels too": lambda backbone: small("nepa", backbone, pixel_weight=0.5),
    "nepa, head and pixels": lambda backbone: small("nepa", backbone, head_depth=2, pixel_weight=0.5),
    "aim_features, pixels too": lambda backbone: small("aim_features", backbone, pixel_weight=0.5),
    "ijepa by replacement": ijepa_by_replacement,
    "ijepa, pixels too": lambda backbone: small("ijepa", backbone, local=True, pixel_weight=0.5, predictor_kernel=3),
    "data2vec by replacement": data2vec_by_replacement,
    "data2vec, pixels too": lambda backbone: small("data2vec", backbone, local=True, pixel_weight=0.5),
    "aim, linear head": lambda backbone: small("aim", backbone, head_depth=0),
    "aim, causal": lambda backbone: small("aim", backbone, plan=RasterOrder(random_prefix=False)),
    "aim, random order": lambda backbone: small("aim", backbone, plan=RandomOrder()),
}
"""Methods with one part exchanged."""
METHODS = [*SMALL, *VARIANTS]
KINDS = ["mae", "simmim", "ijepa", "aim"]
"""One method of each way to hide units and each kind of target: where a test says something of the backbone."""


def slow_but(fast: list[str]) -> list[Any]:
    """`METHODS` as parameters of a test; all but a few are marked slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in fast)) for name in METHODS]


def build(method: str, backbone: Backbone) -> Pretrainer:
    """A method or a variant, by the names of `METHODS`."""
    return VARIANTS[method](backbone) if method in VARIANTS else small(method, backbone)
