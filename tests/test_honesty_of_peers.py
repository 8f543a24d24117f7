"""What docs/honesty.md says of other libraries; left out where they are not installed."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from benchmarks.peers_honesty import PEERS, Peer

from patchcast.honesty import FLOOR, no_leak, noise_floor

SLOW = {"stable-pretraining"}  # to import
VARIANTS = [
    pytest.param(package, what, place > 0, marks=[pytest.mark.slow] if package in SLOW else [])
    for package, variants in PEERS.items()
    for place, (what, _) in enumerate(variants)
]
as_it_comes_and_corrected = pytest.mark.parametrize(("package", "what", "is_honest"), VARIANTS)


def build(package: str, what: str) -> Peer:
    pytest.importorskip(package.replace("-", "_"), reason=f"{package} is not installed")
    print(f"{package} {importlib.metadata.version(package)}")
    torch.manual_seed(0)
    return dict(PEERS[package])[what]()


@as_it_comes_and_corrected
def test_no_leak(package: str, what: str, is_honest: bool) -> None:
    peer = build(package, what)
    images = torch.randn(2, 3, 48, 48)
    leak = no_leak(peer, images, peer.draw(images), limit=4)
    assert leak.honest == is_honest, leak


@pytest.mark.slow
@as_it_comes_and_corrected
def test_noise_floor(package: str, what: str, is_honest: bool) -> None:
    floor = noise_floor(build(package, what))
    assert (floor > FLOOR) == is_honest, floor
