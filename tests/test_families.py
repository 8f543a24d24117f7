"""Methods on families of backbones beyond the plain transformer: honest, trainable, and learning from real images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchcast.backbones import CannotError, wrap
from patchcast.data import Evaluate, open_images
from patchcast.methods import aim, mae
from patchcast.plans import RasterOrder
from patchcast.pretrainer import Pretrainer
from patchcast.views import Paint
from tests import contracts, methods
from tests.backbones import zoo

# Raw pixels: brightness is learned in a few steps, the texture of normalized units is not.
OPTIONS = {
    "mae": {"decoder_depth": 1, "normalize": False},
    "simmim": {},
    "ijepa": {"predictor_depth": 1},
    "aim": {"head_depth": 1},
}
FEATURED = [
    ("mae", "hiera_tiny_224"),
    ("mae", "vit_tiny_patch16_dinov3_qkvb"),
    ("mae", "naflexvit_base_patch16_gap"),
    ("aim", "vit_tiny_patch16_dinov3_qkvb"),
    ("aim", "beit_base_patch16_224"),
    ("simmim", "swin_tiny_patch4_window7_224"),
    ("simmim", "swinv2_tiny_window8_256"),
    ("simmim", "test_maxvit"),
    ("simmim", "pvt_v2_b0"),
    ("ijepa", "swin_tiny_patch4_window7_224"),
]
FEATURED = [pair for pair in FEATURED if pair[1] in zoo.NAMES]  # some came after the oldest timm that we support
# Convolutional models, which are not entered: they see hidden units painted over.
PAINTED = [("simmim", "test_convnext"), ("simmim", "test_resnet")]
# One that drops its units in groups, one with rotary positions, and one that is painted.
LEARN_FAST = [("mae", "hiera_tiny_224"), ("aim", "vit_tiny_patch16_dinov3_qkvb"), ("simmim", "test_resnet")]
OTHERS = [
    pytest.param(method, name, marks=pytest.mark.slow)
    for method in methods.KINDS
    for name in zoo.NAMES
    if (method, name) not in FEATURED
]


def build(method: str, name: str) -> Pretrainer:
    """The method over a small build of the architecture; skipped where the backbone cannot do it, and says so."""
    try:
        return methods.small(method, deepcopy(zoo.small(name)), **OPTIONS[method])
    except CannotError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize(("method", "name"), [*FEATURED, *OTHERS])
def test_no_leak(method: str, name: str) -> None:
    contracts.check_no_leak(build(method, name))


@pytest.mark.parametrize(("method", "name"), [*FEATURED, *OTHERS])
def test_gradients(method: str, name: str) -> None:
    contracts.check_gradients(build(method, name))


@pytest.mark.filterwarnings("ignore:no adapter knows")
@pytest.mark.parametrize(("method", "name"), PAINTED)
def test_convolutional_models_are_honest_by_painting(method: str, name: str) -> None:
    pretrainer = methods.small(method, wrap(name, img_size=(64, 96)), **OPTIONS[method])
    assert isinstance(pretrainer.view, Paint)
    contracts.check_no_leak(pretrainer)
    contracts.check_gradients(pretrainer)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("aim", "vit_tiny_patch16_dinov3_qkvb"),
        pytest.param("mae", "hiera_tiny_224", marks=pytest.mark.slow),
        pytest.param("simmim", "swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_noise_floor(method: str, name: str) -> None:
    contracts.check_noise_floor(build(method, name))


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Tensor]:
    images = open_images(str(shared_data / "eurosat"))
    return [images[i].image for i in range(0, 640, 10)]


@pytest.mark.filterwarnings("ignore:no adapter knows")
@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=[pytest.mark.slow] * ((method, name) not in LEARN_FAST))
        for method, name in [*FEATURED, *PAINTED]
        if method != "ijepa"
    ],
)
def test_the_loss_falls_on_real_images(method: str, name: str, photographs: list[Tensor]) -> None:
    """From timm's own initial weights, judged by images that were not trained on: below what the mean alone gives.

    A higher rate is unstable on hiera: with one seed of three it did not learn.
    """
    pretrainer = methods.small(method, wrap(name, **zoo.BY_NAME.get(name, {"img_size": (64, 96)})), **OPTIONS[method])
    transform = Evaluate(pretrainer.backbone.image_size, (0.35, 0.38, 0.41), (0.2, 0.14, 0.12))
    images, others = torch.stack([transform(each) for each in photographs]).chunk(2)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=5e-4)
    pretrainer.train()
    for step in range(80 if method == "simmim" else 40):
        pretrainer(images[step % 4 :: 4]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        output = pretrainer.eval()(others, generator=torch.Generator().manual_seed(9))
        blind = pretrainer.loss(pretrainer.target.blind(output.targets), output.targets).mean()
    assert output.loss < 0.95 * blind


def test_what_cannot_be_done_is_refused_in_one_sentence() -> None:
    with pytest.raises(CannotError, match=r"SwinTransformer cannot run on the visible units alone.*it can"):
        mae(zoo.small("swin_tiny_patch4_window7_224"))
    with pytest.raises(CannotError, match="cannot apply any attention mask"):
        aim(zoo.small("pvt_v2_b0"))
    with pytest.raises(CannotError, match="would leak: the stem of VisionTransformer"):
        aim(zoo.small("vit_tiny_r_s16_p8_224"))
    parts = mae(wrap("test_vit", img_size=32), decoder_depth=1)
    others = {"view": parts.view, "predictor": parts.predictor, "target": parts.target, "loss": parts.loss}
    with pytest.raises(CannotError, match="Drop shows a MaskPlan; RasterOrder"):
        Pretrainer(parts.backbone, plan=RasterOrder(), **others)
