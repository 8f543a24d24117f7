"""A pretrainer under `torch.compile`, in a process of its own: the shape checks of the test suite break it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch
from patchcast.backbones import wrap
from patchcast.methods import aim, simmim

torch.set_num_threads(1)
for method in (aim, simmim):
    torch.manual_seed(0)
    pretrainer = method(wrap("test_vit", img_size=64))
    batches = [torch.randn(count, 3, 64, 64) for count in (2, 3, 4)]  # from the second on, for any size
    losses = []
    for compiled in (False, True):
        if compiled:
            pretrainer.compile(backend="eager")
        torch.manual_seed(1)
        losses.append([pretrainer(images).loss for images in batches])
    torch.testing.assert_close(losses[1], losses[0])
    print("compiled")
"""


def test_it_draws_its_own_plans_for_batches_of_any_size() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["compiled", "compiled"], done.stderr[-3000:]
