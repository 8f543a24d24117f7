"""Training on digits with a tiny network: it learns, it goes on to the bit, and it decays what it should."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning_utilities.core import rank_zero
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Subset

from patchcast.backbones import wrap
from patchcast.data import Augment, EvalSet, Evaluate, TrainSet, open_images
from patchcast.losses import squared
from patchcast.methods import aim, mae
from patchcast.objectives import Objective, sum_of
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Pixels
from patchcast.training.engine import Engine
from patchcast.training.log import curve
from patchcast.training.loop import train
from patchcast.training.optimization import Optimization, parameter_groups
from patchcast.training.stream import Stream

HELD_OUT = 96
"""Images for the loss on held-out images: all of the digits would take longer than the steps."""
METHODS = {
    "mae": lambda backbone: mae(backbone, decoder_width=32, decoder_depth=1),
    "aim": lambda backbone: aim(backbone, head_depth=1),
}


def two_objectives() -> Pretrainer:
    """Pixels normalized and raw, by one decoder each."""
    one, other = tiny("mae"), tiny("mae")
    raw = Pixels(one.backbone.stride, channels=1, normalize=False)
    parts = sum_of(
        contrast=Objective(one.predictor, one.target, squared), raw=Objective(other.predictor, raw, squared, weight=0.5)
    )
    return Pretrainer(one.backbone, plan=one.plan, view=one.view, **parts)


def tiny(method: str) -> Pretrainer:
    torch.manual_seed(0)
    return METHODS[method](
        wrap("test_vit", img_size=8, patch_size=2, in_chans=1, depth=2, drop_path_rate=0.2, pos_drop_rate=0.1)
    )


def run(
    pretrainer: Pretrainer,
    out: Path,
    *,
    steps: int = 12,
    workers: int = 0,
    accumulate: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    eval_every: int = 6,
    **how: Any,
) -> None:
    images = open_images("digits")
    stream = Stream(
        TrainSet(images, Augment((8, 8), (0.4, 1.0), False, (0.3,), (0.4,)), seed=3),
        batch_size=16,
        steps=steps,
        seed=3,
        workers=workers,
        accumulate=accumulate,
    )
    held_out = DataLoader(Subset(EvalSet(images, Evaluate((8, 8), (0.3,), (0.4,))), range(HELD_OUT)), batch_size=64)
    how.setdefault("optimization", Optimization(lr=1e-3, clip=1.0))
    engine = Engine(precision=precision, device="cpu", log_every=2, eval_every=eval_every, checkpoint_every=5)
    train(pretrainer, stream, held_out, engine=engine, out=out, title="test", **how)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_objective_is_logged(tmp_path: Path, accumulate: int) -> None:
    run(two_objectives(), tmp_path, steps=4, accumulate=accumulate)
    _, losses = curve(tmp_path / "metrics.csv", "loss")
    _, contrast = curve(tmp_path / "metrics.csv", "loss_contrast")
    _, raw = curve(tmp_path / "metrics.csv", "loss_raw")
    assert len(losses) == 2
    assert losses == pytest.approx([one + 0.5 * other for one, other in zip(contrast, raw, strict=True)], rel=1e-5)


class Killed(RuntimeError):
    pass


@contextmanager
def before_updates(action: Callable[[int, Optimizer], None]) -> Iterator[None]:
    """Inside, `action` is called before every optimizer step, with the number of those before it."""
    numbers = count()
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: action(next(numbers), optimizer))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """The work inside must end in the middle of a step, between two checkpoints."""

    def kill(number: int, _: Optimizer) -> None:
        if number == step:
            raise Killed

    with pytest.raises(Killed), before_updates(kill):
        yield


@pytest.fixture(scope="module")
def whole(few_digits: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Pretrainer, Path]]:
    """A method after a run that nothing stops, and the folder of the run; made once."""

    @cache
    def made(method: str) -> tuple[Pretrainer, Path]:
        pretrainer, out = tiny(method), tmp_path_factory.mktemp(method)
        run(pretrainer, out)
        return pretrainer, out

    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kill_at", [7, 10])
def test_a_killed_run_goes_on_to_the_bit(
    method: str, kill_at: int, whole: Callable[[str], tuple[Pretrainer, Path]], tmp_path: Path
) -> None:
    """Drop path, dropout, augmentation, masks, optimizer and schedule included; also with worker processes."""
    (trained, folder), broken, resumed = whole(method), tiny(method), tiny(method)
    with killed_at(kill_at):
        run(broken, tmp_path / "broken")
    run(resumed, tmp_path / "broken", workers=1 if kill_at == 7 else 0)
    for (name, one), two in zip(trained.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    for metric in ("loss", "eval_loss", "lr"):
        assert curve(folder / "metrics.csv", metric) == curve(tmp_path / "broken" / "metrics.csv", metric)


def test_the_log_has_every_loss(tmp_path: Path) -> None:
    run(tiny("mae"), tmp_path)
    steps, losses = curve(tmp_path / "metrics.csv", "loss")
    assert steps == [2, 4, 6, 8, 10, 12]
    assert all(loss > 0 for loss in losses)
    assert curve(tmp_path / "metrics.csv", "eval_loss")[0] == [6, 12]
    assert curve(tmp_path / "metrics.csv", "lr")[1][0] > curve(tmp_path / "metrics.csv", "lr")[1][-1]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_on_real_images(method: str, tmp_path: Path) -> None:
    pretrainer = tiny(method)
    run(pretrainer, tmp_path, steps=80, optimization=Optimization(lr=3e-3), eval_every=10)
    _, held_out = curve(tmp_path / "metrics.csv", "eval_loss")
    assert held_out[-1] < 0.9 * held_out[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_clipped_in_any_precision(precision: Literal["fp32", "bf16"], tmp_path: Path) -> None:
    """To next to nothing, so that Adam, which divides by the size of gradients but for 1e-8, hardly moves."""
    moved = {}
    for clip in (None, 1e-12):
        pretrainer = tiny("aim")
        before = [each.detach().clone() for each in pretrainer.parameters()]
        optimization = Optimization(lr=1e-3, weight_decay=0.0, clip=clip)
        run(pretrainer, tmp_path / str(clip), steps=2, precision=precision, optimization=optimization)
        moved[clip] = max(
            float((one - two).abs().max()) for one, two in zip(pretrainer.parameters(), before, strict=True)
        )
    assert moved[1e-12] < 1e-3 * moved[None]


def test_advice_about_fp32_products_is_not_printed(caplog: pytest.LogCaptureFixture) -> None:
    """Lightning gives it on GPUs that have tensor cores; other lines of its logger stay."""
    Engine("fp32", "cpu", 1, 1, 1).fabric()
    with caplog.at_level(logging.INFO, logger=rank_zero.log.name):
        rank_zero.log.info("you should set `torch.set_float32_matmul_precision('medium' | 'high')`")
        rank_zero.log.info("something else")
    assert caplog.messages == ["something else"]


def test_norms_biases_positions_and_tokens_are_not_decayed() -> None:
    pretrainer = mae(wrap("vit_small_patch14_reg4_dinov2", img_size=28, depth=1, embed_dim=48, num_heads=2))
    decayed, spared = parameter_groups(pretrainer, 0.05)
    names = {id(parameter): name for name, parameter in pretrainer.named_parameters()}
    decayed_names = {names[id(each)] for each in decayed["params"]}
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed_names)
    for spare in ("cls_token", "reg_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.0.norm1.weight"):
        assert f"backbone.model.{spare}" not in decayed_names
    assert "predictor.mask_token" not in decayed_names


@pytest.mark.parametrize("method", METHODS)
def test_held_out_images_are_evaluated_in_micro_batches(method: str, tmp_path: Path) -> None:
    """With the same plans and weights, so that the loss is that of whole batches; 96 images in 64 + 32, by pieces."""
    losses, largest = [], []
    for accumulate in (1, 8):
        pretrainer, seen = tiny(method), list[int]()
        pretrainer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
        torch.manual_seed(0)
        run(pretrainer, tmp_path / str(accumulate), steps=1, accumulate=accumulate, optimization=Optimization(lr=0.0))
        losses.append(curve(tmp_path / str(accumulate) / "metrics.csv", "eval_loss")[1][-1])
        largest.append(max(seen))
    assert largest == [64, 8]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
