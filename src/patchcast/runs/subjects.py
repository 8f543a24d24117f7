"""Networks in the form that evaluation takes: a run, the same before training, and others for the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchcast.evaluation.protocol import OURS, UNTRAINED, Subject
from patchcast.files import cache_folder
from patchcast.runs.network import Network, open_network


def rows_of(network: Network, against: list[str]) -> dict[str, Subject]:
    """The rows to measure: the network, the same network before training, and others by name."""
    rows = {name: subject_of(network, backbone, name) for name, backbone in network.with_untrained().items()}
    return rows | {name: subject_of(open_against(name, network)) for name in against}


def open_against(name: str, network: Network) -> Network:
    """Another network for the same images: a run by its folder, or a timm model by its name.

    Raises:
        ValueError: if it takes another number of channels.
    """
    other = open_network(name)
    if other.backbone.channels != network.backbone.channels:
        raise ValueError(
            f"--against {name} takes images of {other.backbone.channels} channels, and {network.name} takes "
            f"{network.backbone.channels}: they cannot see the same images"
        )
    return other


def subject_of(network: Network, backbone: Any = None, name: str = OURS) -> Subject:
    """A network in the form that protocols take, optionally with another backbone."""
    is_trained = network.is_trained and name != UNTRAINED
    return Subject(backbone or network.backbone, network.evaluate, network.augment, network.size, is_trained)


def feature_cache() -> Path:
    """The feature cache: a folder for each network and kind of features, named by a hash of the weights."""
    return cache_folder() / "features"
