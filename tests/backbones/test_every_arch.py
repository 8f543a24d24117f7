"""The same contract for every registered architecture that has an adapter, depth cut and images small where that can
be. `PATCHCAST_LOG=file` appends one line each."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchcast.backbones import Backbone, wrap
from patchcast.backbones.projected import Projected
from patchcast.backbones.support import Support, table
from patchcast.geometry import take, upsample
from tests.backbones.zoo import assert_same, flat, images_for, randomize, scaled

ENTERED = [row for row in table() if row.can > {"paint"}]
CUTS: list[dict[str, Any]] = [
    {"depth": 2},
    {"depths": (1, 1, 1, 1)},
    {"depths": (1, 1, 1)},
    {"layers": (1, 1, 1, 1)},
    {},
]
# Classes that are cut in ways of their own; ConViT's class token enters at `local_up_to_layer`.
OWN_CUTS: dict[str, dict[str, Any]] = {
    "CoaT": {"serial_depths": (1, 1, 1, 1)},
    "ConVit": {"depth": 2, "local_up_to_layer": 1},
    "CrossVit": {"depth": ((1, 1, 0),)},
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ENTERED, ids=lambda row: row.name)
def test_contract(row: Support) -> None:
    backbone, how = cut(row)
    misplaced = 0.0
    images = images_for(backbone, batch=2)
    grid = backbone.grid(images)
    with torch.no_grad():
        tokens = backbone.embed(images)
        features = backbone.forward_stages(tokens)
        assert_same(backbone.own_features(features), backbone.model.forward_features(images))
        prefix, units = backbone.split(features, tokens)
        assert units.shape == (2, grid.units, backbone.width)
        assert prefix.shape[1:] == (backbone.features_prefix, backbone.width)
        replaces(backbone, images)
        if "drop" in backbone.can:
            order = torch.stack([torch.randperm(grid.units) for _ in images])
            kept = backbone.keep(tokens, order)
            misplaced = scaled(backbone.split(backbone.forward_stages(kept), kept)[1], take(units, order))
            assert misplaced < 1e-5
        if "attend" in backbone.can:
            attends(backbone, images)
    idle = {id(each) for each in backbone.parameters_in([*backbone.unused(), *backbone.not_in_features()])}
    for_prefix = {id(each) for each in backbone.parameters_in(backbone.prefix_only())}
    in_training = backbone.train().units(images)  # in evaluation LeViT keeps its biases, and recomputes none
    unreached = {id(each) for each in backbone.parameters()} - reached(in_training)
    assert idle <= unreached <= idle | for_prefix  # class attention is reached, where units are cut off behind it
    if "PATCHCAST_LOG" in os.environ:
        with Path(os.environ["PATCHCAST_LOG"]).open("a") as log:
            can = ",".join(sorted(backbone.can))
            log.write(f"{row.name} {row.model_class} {can} {misplaced:.1e} {backbone.image_size} {how}\n")


def cut(row: Support) -> tuple[Backbone, str]:
    """The architecture with few blocks and a small image, or as little of either as it lets itself be cut."""
    for cuts, size in attempts(row):
        gc.collect()
        try:
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                backbone = wrap(row.name, **cuts, img_size=size).eval()
                with torch.no_grad():
                    backbone.model.forward_features(images_for(backbone, batch=1))
        except (AssertionError, AttributeError, IndexError, RuntimeError, StopIteration, TypeError, ValueError):
            continue
        randomize(backbone.model)
        return backbone, f"{cuts or 'native depth'}"
    raise AssertionError(f"{row.name} could not be built")


def attempts(row: Support) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    (down, right), nominal = row.stride, row.image_size
    small = (4 * down, 6 * right) if down <= 16 else (2 * down, 4 * right)
    for cuts in [OWN_CUTS[row.model_class], {}] if row.model_class in OWN_CUTS else CUTS:
        yield cuts, small
        yield cuts, (4 * down, 4 * right)
        yield cuts, nominal


def reached(features: Tensor) -> set[int]:
    """The parameters (by identity) that features depend on, read from the graph without going back through it."""
    found, seen, waiting = set(), set(), [features.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting.extend(each for each, _ in node.next_functions)
    return found


def replaces(backbone: Backbone, images: Tensor) -> None:
    """Nothing of hidden pixels reaches any feature."""
    is_hidden = torch.zeros(len(images), *backbone.grid(images), dtype=torch.bool)
    is_hidden[0, 0, 0] = is_hidden[1, -1] = True
    other = torch.where(upsample(is_hidden, backbone.image_size)[:, None], torch.randn_like(images), images)
    token = torch.randn(backbone.embed_width)
    ours, others, visible = (
        backbone.forward_stages(backbone.embed(each, is_hidden=hidden, mask_token=token))
        for each, hidden in ((images, is_hidden), (other, is_hidden), (images, torch.zeros_like(is_hidden)))
    )
    assert_same(ours, others)
    assert any(not torch.equal(a, b) for a, b in zip(flat(ours), flat(visible), strict=True))


def attends(backbone: Backbone, images: Tensor) -> None:
    """Under a causal mask, a change of one token leaves all units before it as they were."""
    first, second = backbone.embed(images), backbone.embed(images)
    merged = backbone.merged if isinstance(backbone, Projected) else 1
    row, col = divmod((count := backbone.grid(images).units) // 2, backbone.grid(images).cols)
    at = row * merged * second.grid.cols + col * merged
    second.x[:, second.prefix + at] += torch.randn(second.x.shape[-1])  # not a constant: norms would take it away
    still, moved = (backbone.split(backbone.forward_stages(each, is_causal=True), each)[1] for each in (first, second))
    difference = (moved - still).abs().amax((0, 2))
    assert not difference[: count // 2].any()
    assert (difference[count // 2 :] > 0).all()
