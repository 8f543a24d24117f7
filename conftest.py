"""Shapes are checked in every test: jaxtyping with beartype, on all of patchcast."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from tests import checked

# The suite is about the CPU, where results repeat to the bit: on a machine with a GPU, runs would train there, in bf16.
# CUDA_VISIBLE_DEVICES=0 shows it to the tests that need one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
jaxtyping.jaxtyped = checked.jaxtyped
jaxtyping.install_import_hook("patchcast", "beartype.beartype")

import torch  # noqa: E402
from timm.layers import weight_init  # noqa: E402

torch.set_num_threads(1)  # the suite runs in two processes; threads that wait for each other's core cost minutes
# The first backward pass of a process settles whether autograd has threads of its own. After an export it finds a
# device that exporting registers, starts threads for it, and processes that tests fork can then train nothing.
torch.zeros(1, requires_grad=True).backward()
# torch asks the driver again and again, which takes long where there is none.
torch.cuda._cached_device_count = torch.cuda.device_count()
# On the meta device there is nothing to draw, and torch decomposes each draw in Python.
draw_weights = weight_init._trunc_normal_
weight_init._trunc_normal_ = lambda tensor, *how: tensor if tensor.is_meta else draw_weights(tensor, *how)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Compiling under the shape checks takes ten times as long: test_compiled.py runs this example without them."""
    if item.name == "patchcast.honesty.examine":
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """The garbage collector leaves alone what is there before the first test: modules, of which it frees
    nothing; and it looks at the rest less often than after every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries complain of leaks when the process ends


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """For modules of small runs: `pytestmark = pytest.mark.usefixtures("few_digits")`."""
    from tests import few

    with few.few_digits():
        yield


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without figures and samples, which take as long as a small run: fixtures have runs with them."""
    monkeypatch.setattr("patchcast.runs.results.write_figure", lambda _, file: file.touch())
    monkeypatch.setattr("patchcast.runs.results.write_samples", lambda *_, **__: None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; absent for users."""
    root = Path(__file__).resolve().parents[1] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the real images of ../shared/data, which are not here")
    return root
