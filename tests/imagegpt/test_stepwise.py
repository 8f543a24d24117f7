"""Drawing's steps against the network that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchcast.backbones.imagegpt_network import Cache, ImageGPT
from patchcast.backbones.imagegpt_stepwise import Stepwise
from patchcast.geometry import Grid
from tests.peers import wake

CODES, PLACES = 11, 16


def logits(network: ImageGPT, head: nn.Linear, ids: Tensor, prefix: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the places behind the prefix: by the network, and by the steps."""
    expected, found = [], []
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        stepwise, theirs, ours = Stepwise(network, head), Cache(network, len(ids)), Cache(network, len(ids))
        for cache in (theirs, ours):
            network.extend(ids[:, :prefix], cache)
        for place in range(prefix, PLACES - 1):
            latest = ids[:, place : place + 1]
            expected.append(head(network.extend(latest, theirs)[:, -1]))
            found.append(stepwise(latest, ours))
        assert ours.length == theirs.length == PLACES
    return torch.stack(expected), torch.stack(found)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_steps_are_the_networks(bias: bool, prefix: int, dtype: torch.dtype, tolerance: float) -> None:
    network = ImageGPT(Grid(4, 4), CODES, depth=3, width=32, heads=4, bias=bias)
    head = nn.Linear(32, CODES, bias=False)
    wake(network)
    expected, found = logits(network, head, torch.randint(CODES, (3, PLACES)), prefix, dtype)
    assert expected.float().std() > 0.1
    torch.testing.assert_close(found, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"act": "gelu_new", "eps": 1e-2},
        {"scale_by_depth": True},
        {"scale_attention": False, "attention_in_float32": True, "act": "relu2"},
        {"embed_drop": 0.5, "attn_drop": 0.5, "proj_drop": 0.5},
    ],
    ids=lambda options: "-".join(options),
)
def test_steps_are_the_networks_with_any_option(options: dict[str, Any]) -> None:
    network = ImageGPT(Grid(4, 4), CODES, depth=3, width=32, heads=4, bias=True, **options).eval()
    head, ids = nn.Linear(32, CODES, bias=False), torch.randint(CODES, (3, PLACES))
    wake(network)
    expected, found = logits(network, head, ids, 5, torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    whole = head(network(ids))[:, 6:].transpose(0, 1)
    torch.testing.assert_close(expected, whole, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_in_float64_they_are_the_networks_to_float64s_rounding() -> None:
    network, head = ImageGPT(Grid(4, 4), CODES, depth=3, width=32, heads=4), nn.Linear(32, CODES, bias=False)
    wake(network)
    expected, found = logits(network.double(), head.double(), torch.randint(CODES, (3, PLACES)), 0, torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
