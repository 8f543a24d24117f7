"""Weights and gradients compared with those of a peer, name by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def copy_weights(ours: nn.Module, theirs: nn.Module, name: Callable[[str], str]) -> None:
    """Our parameters become the peer's; `name` gives the peer's name for each of ours."""
    state = theirs.state_dict()
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            parameter.copy_(state[name(key)].reshape(parameter.shape))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, name: Callable[[str], str], atol: float = 1e-5) -> None:
    """Each of our parameters has the gradient of the peer's, and no trainable parameter of the peer is left over."""
    peers = {key: parameter.grad for key, parameter in theirs.named_parameters() if parameter.requires_grad}
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        expected = peers.pop(name(key))
        assert expected is not None, key
        torch.testing.assert_close(parameter.grad, expected.reshape(parameter.shape), atol=atol, rtol=1e-4, msg=key)
    assert not peers, f"parameters of the peer that were compared with none of ours: {sorted(peers)}"


def wake(module: nn.Module) -> nn.Module:
    """Every trainable parameter away from its initial value: zeros would hide that something is in the wrong place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module
