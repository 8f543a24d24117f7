"""A step reads nothing from its device: on torch's meta device, where tensors have no values, reading raises.

Such a read (`.item()`, a tensor in an `if`, a tensor left on the CPU) makes a GPU wait for all that it was given to do,
and so does a copy to the device that the CPU waits for.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators import CPUAccelerator
from lightning.fabric.strategies import SingleDeviceStrategy

from patchcast.backbones import wrap
from patchcast.data import Augment, Cutter, TrainSet, finish, open_images
from patchcast.geometry import Grid
from patchcast.methods import aim, beit, data2vec, ijepa, mae, maskfeat, nepa, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.tokenizers.patches import PatchCodebook
from patchcast.training import loop
from patchcast.training.engine import Engine
from patchcast.training.optimization import Optimization, parameter_groups
from patchcast.training.stream import Stream
from tests.imagegpt import parts
from tests.training.test_run import before_updates, killed_at
from tests.without_values import Waits

AUGMENT = Augment((8, 8), (0.4, 1.0), True, (0.3,), (0.4,))
CODEBOOK = PatchCodebook(torch.rand(5, 4), stride=(2, 2), normalize=False)


class Meta(CPUAccelerator):
    """Where tensors have shapes, and no values."""

    def setup_device(self, device: torch.device) -> None:
        pass


METHODS = {
    "mae": partial(mae, decoder_width=32, decoder_depth=1),
    "simmim": simmim,
    "beit": partial(beit, tokenizer=CODEBOOK),
    "ijepa": partial(ijepa, predictor_width=32, predictor_depth=1),
    "data2vec": partial(data2vec, masks=2, decoder_depth=1),
    "aim": partial(aim, head_depth=1),
    "maskfeat": maskfeat,
    "nepa": nepa,
    "imagegpt": lambda _: parts.causal(Grid(8, 8)),
}


def vit() -> Any:
    return wrap("test_vit", img_size=8, patch_size=2, in_chans=1, depth=1, drop_path_rate=0.2)


def train_on_meta(pretrainer: Pretrainer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, in two pieces each, clipped, with augmentation on the device; rows of the log would come later."""

    def fabric(_: Engine) -> Fabric:
        return Fabric(strategy=SingleDeviceStrategy(torch.device("meta"), Meta()), precision="32-true")

    def unfused(model: Any, settings: Optimization, _: torch.dtype) -> torch.optim.AdamW:  # meta has no fused kernels
        return torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr)

    monkeypatch.setattr(Engine, "fabric", fabric)
    monkeypatch.setattr(loop, "make_optimizer", unfused)
    train_set = TrainSet(open_images("digits"), Cutter(AUGMENT), seed=0)
    stream = Stream(train_set, batch_size=8, steps=100, seed=0, workers=0, accumulate=2)
    engine = Engine(precision="fp32", device="cpu", log_every=100, eval_every=100, checkpoint_every=100)
    loop.train(
        pretrainer, stream, None, optimization=Optimization(lr=1e-3, clip=1.0), engine=engine, out=out, title="meta",
        finish=partial(finish, AUGMENT),
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_steps_read_nothing(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()
    pretrainer = METHODS[method](vit())
    pretrainer.target(torch.zeros(1, 1, 8, 8))  # a palette's table of codes is made on first use, on the CPU
    with killed_at(3), before_updates(lambda step, _: waits.noted.clear() if step == 1 else None), waits:
        train_on_meta(pretrainer, tmp_path, monkeypatch)
    assert waits.noted == []


def test_a_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrainer = METHODS["mae"](vit())
    plain = pretrainer.loss
    pretrainer.loss = lambda predictions, targets: plain(predictions, targets) * predictions.mean().item()
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        train_on_meta(pretrainer, tmp_path, monkeypatch)
