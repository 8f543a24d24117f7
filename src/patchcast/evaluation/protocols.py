"""The table of evaluation protocols. To add one: a file, a row here, and its options in `patchcast.options.PROBES`."""

from __future__ import annotations

from typing import Any

from patchcast.evaluation.attentive_protocol import AttentiveProtocol
from patchcast.evaluation.dense_protocol import DenseProtocol
from patchcast.evaluation.feature_protocol import FeatureProtocol
from patchcast.evaluation.finetune_protocol import FinetuneProtocol
from patchcast.evaluation.layer_protocol import LayerProtocol
from patchcast.evaluation.protocol import Protocol

PROTOCOLS: dict[str, type[Protocol[Any]]] = {
    "features": FeatureProtocol,
    "layers": LayerProtocol,
    "attentive": AttentiveProtocol,
    "dense": DenseProtocol,
    "finetune": FinetuneProtocol,
}
"""By name: `patchcast probe --NAME`, and `features` without one."""
