"""The memory of a step, from tensors without values, against what torch's allocator hands out on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from patchcast.backbones import wrap
from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
from patchcast.geometry import Grid
from patchcast.methods import aim, beit, ijepa, imagegpt, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.runs.costs import LiveBytes, step_flops, step_memory
from patchcast.tokenizers.encoded import Encoded
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.training.average import Average
from patchcast.training.engine import LossModule
from patchcast.training.optimization import Optimization, make_optimizer

TOLERANCE = 0.15
CODEBOOK = PatchCodebook(torch.rand(16, 3 * 8 * 8), stride=(8, 8), normalize=False)


def vit() -> Any:
    return wrap("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, embed_dim=96)


METHODS: dict[str, Callable[[], Pretrainer]] = {
    "mae": lambda: mae(vit(), decoder_width=96, decoder_depth=1),
    "simmim": lambda: simmim(vit()),
    "ijepa": lambda: ijepa(vit(), predictor_width=96, predictor_depth=1),
    "aim": lambda: aim(vit(), head_depth=1),
    "beit": lambda: beit(vit(), CODEBOOK),
    "imagegpt": lambda: imagegpt(
        ImageGPTBackbone(ImageGPT(Grid(8, 8), 16, depth=2, width=64, heads=2), Encoded(16), channels=1)
    ),
}


@contextmanager
def allocated() -> Iterator[dict[str, int]]:
    """The most bytes that torch's allocator has handed out at once inside, above what it had before."""
    found = {"most": 0}
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        yield found
    held = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            found["most"] = max(found["most"], held)


IN_BOTH = ("mae", "imagegpt")
CASES = [
    pytest.param(method, precision, marks=pytest.mark.slow if precision == "bf16" and method not in IN_BOTH else [])
    for method in METHODS
    for precision in ("fp32", "bf16")
]


@pytest.mark.parametrize(("method", "precision"), CASES)
def test_memory_of_a_step(method: str, precision: Any) -> None:
    pretrainer = METHODS[method]().train()
    backbone = pretrainer.backbone
    size = (8, backbone.channels, *backbone.image_size)
    images = torch.randint(16, size) if method == "imagegpt" else torch.randn(size)
    expected = step_memory(pretrainer, len(images), precision=precision)
    objective, optimizer = LossModule(pretrainer, precision), make_optimizer(pretrainer, Optimization(lr=1e-3))

    def step() -> None:
        optimizer.zero_grad()
        objective(images, pretrainer.draw(images)).backward()
        optimizer.step()
        pretrainer.after_step()

    step()  # it makes the optimizer's state
    optimizer.zero_grad()
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert expected.moments == pytest.approx(moments, rel=0.01)
    with allocated() as measured:
        step()
    assert expected.step - images.nbytes == pytest.approx(measured["most"], rel=TOLERANCE)
    assert all(weight.is_leaf and not isinstance(weight.grad, torch._subclasses.FakeTensor)
               for weight in pretrainer.parameters())  # fmt: skip


def test_later_pieces_hold_the_gradients_of_earlier_ones() -> None:
    whole, half = (step_memory(METHODS["mae"](), count, pieces=pieces) for count, pieces in ((64, 1), (32, 2)))
    gradients = half.moments // 2
    alone = step_memory(METHODS["mae"](), 32)
    assert alone.step < half.step <= alone.step + gradients < whole.step


def test_an_average_is_another_copy_of_what_is_trained() -> None:
    """As `Average` holds it; a teacher, which is not trained, is not averaged."""
    pretrainer = METHODS["ijepa"]()
    alone, averaged = (step_memory(pretrainer, 2, averaged=is_averaged) for is_averaged in (False, True))
    held = sum(value.nbytes for value in Average(LossModule(pretrainer, "fp32"), 0.9).values.values())
    assert averaged.weights - alone.weights == held
    assert held < alone.weights / 1.5
    assert (averaged.moments, averaged.step) == (alone.moments, alone.step)


def test_checkpointing_takes_less() -> None:
    pretrainer = METHODS["simmim"]()
    stored = step_memory(pretrainer, 8)
    pretrainer.backbone.model.set_grad_checkpointing(True)
    assert step_memory(pretrainer, 8).step < stored.step


def test_live_bytes_forget_what_is_gone() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(10)
        del kept
        torch.zeros(5).view(5, 1)
    assert (live.now, live.most) == (0, 40)


def test_flops_of_a_linear_stack() -> None:
    """An MAE's are those of its blocks, counted by hand, within a tenth: stem, head and attention's products too."""
    pretrainer = mae(vit(), decoder_width=96, decoder_depth=1)
    visible, units, width = 16, 64, 96
    blocks = 2 * visible + units  # rows through a block, for one image
    by_hand = 3 * 2 * 12 * width**2 * blocks
    assert by_hand < step_flops(pretrainer, 1) < 1.6 * by_hand


def test_a_read_of_a_value_is_an_error() -> None:
    pretrainer = METHODS["mae"]()
    plain = pretrainer.loss
    pretrainer.loss = lambda predictions, targets: plain(predictions, targets) * predictions.mean().item()
    with pytest.raises(Exception, match="_local_scalar_dense"):
        step_memory(pretrainer, 2)
