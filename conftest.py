"""Shapes are checked in every test: jaxtyping with beartype, on all of patchcast."""

from __future__ import annotations

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

torch.set_num_threads(1)  # the suite runs in two processes; threads that wait for each other's core cost minutes
# The first backward pass of a process settles whether autograd has threads of its own. After an export it finds a
# device that exporting registers, starts threads for it, and processes that tests fork can then train nothing.
torch.zeros(1, requires_grad=True).backward()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """For modules of small runs: `pytestmark = pytest.mark.usefixtures("few_digits")`."""
    from tests import few

    with few.few_digits():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; absent for users."""
    root = Path(__file__).resolve().parents[1] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the real images of ../shared/data, which are not here")
    return root
