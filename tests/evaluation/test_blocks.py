"""Which blocks a probe averages."""

from __future__ import annotations

import pytest
import torch

from patchcast.evaluation.block_choice import best_blocks, last_blocks
from patchcast.evaluation.features import Features


def layers(depth: int, informed: range, images: int = 600) -> dict[int, Features]:
    """Blocks of noise, but for some that know the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    found = {}
    for block in range(depth):
        x = torch.randn(images, 8, generator=generator)
        if block in informed:
            x[torch.arange(images), labels] += 0.7
        found[block] = Features(x, labels)
    return found


def test_the_informed_blocks_are_found() -> None:
    blocks, choices = best_blocks(layers(12, range(3, 9)))
    assert blocks == tuple(range(3, 9))
    assert set(choices) == {tuple(range(first, first + 6)) for first in range(7)}
    assert choices[blocks] > choices[(0, 1, 2, 3, 4, 5)]


def test_few_blocks_leave_no_choice() -> None:
    assert best_blocks(layers(4, range(2)))[0] == last_blocks(4) == (0, 1, 2, 3)
    assert last_blocks(24) == tuple(range(18, 24)), "AIM's last layers"


def test_blocks_of_several_widths_are_refused() -> None:
    found = layers(3, range(1))
    found[2] = Features(torch.randn(600, 16), found[0].labels)
    with pytest.raises(ValueError, match="these have 8, 16"):
        best_blocks(found, size=2)
