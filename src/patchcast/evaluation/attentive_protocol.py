"""`patchcast probe --attentive`: AIM's probe, which learns how to pool units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from patchcast import options
from patchcast.evaluation.attentive import attentive_probe
from patchcast.evaluation.block_choice import best_blocks, last_blocks
from patchcast.evaluation.features import Features, extract_layers, extract_tokens
from patchcast.evaluation.intervals import Interval, accuracy_interval
from patchcast.evaluation.protocol import Protocol, Request, Subject, new_table

EPOCHS = 20


@dataclass(frozen=True)
class AttentiveScore:
    """The result of the attentive probe on the mean of some blocks.

    Attributes:
        correct: True for test images that were classified correctly.
        choices: held-out accuracy of a linear classifier for every choice of blocks; empty for the last blocks.
    """

    correct: Tensor
    blocks: tuple[int, ...]
    lr: float
    choices: dict[tuple[int, ...], float]

    @property
    def accuracy(self) -> Interval:
        return accuracy_interval(self.correct)


class AttentiveProtocol(Protocol[AttentiveScore]):
    """AIM's probe on the mean of six blocks: the last six, or six chosen on held-out training images."""

    file = "attentive"

    def __init__(self, options: options.Attentive, request: Request, subject: Subject) -> None:
        self.choice, self.request = options.attentive, request
        self.cache = request.cache if options.cache else None
        self.labeled = request.labeled()
        self.description = self.labeled.description

    def measure(self, subject: Subject) -> AttentiveScore:
        backbone, device = subject.backbone, self.request.device
        train, test = self.labeled.loaders(subject.evaluate)
        layers: dict[int, Features] = extract_layers(backbone, train, device=device, cache=self.cache)
        blocks, choices = (last_blocks(len(layers)), {}) if self.choice == "last" else best_blocks(layers)
        # Units are not cached: those of 5,000 images of a ViT-Tiny are 250 MB.
        fitted = extract_tokens(backbone, train, blocks=blocks, device=device)
        judged = extract_tokens(backbone, test, blocks=blocks, device=device)
        result = attentive_probe(fitted, judged, heads=heads_of(fitted.x.shape[2]), epochs=EPOCHS, device=device)
        return AttentiveScore(result.correct, blocks, result.lr, choices)

    def tables(self, results: Mapping[str, AttentiveScore]) -> list[Table]:
        table = new_table(self.description, "attentive probe", "mean of blocks", "accuracy", "95 % interval")
        for name, result in results.items():
            value, low, high = (100 * share for share in result.accuracy)
            blocks = f"{result.blocks[0]} to {result.blocks[-1]}"
            table.add_row(name, blocks, f"{value:.1f}", f"{low:.1f} to {high:.1f}")
        table.caption = f"One learned query; {EPOCHS} epochs; the learning rate chosen on held-out training images."
        return [table]

    def record(self, results: Mapping[str, AttentiveScore]) -> dict[str, Any]:
        rows = {
            name: {
                "accuracy": result.accuracy._asdict(),
                "blocks": list(result.blocks),
                "lr": result.lr,
                "held_out": {f"{blocks[0]}-{blocks[-1]}": value for blocks, value in result.choices.items()},
            }
            for name, result in results.items()
        }
        return {"choice": self.choice, **rows}

    def correct(self, result: AttentiveScore) -> Tensor:
        return result.correct


def heads_of(width: int) -> int:
    """Attention heads of 64 channels or a little more.

    >>> heads_of(192), heads_of(200), heads_of(48)
    (3, 2, 1)
    """
    return max(heads for heads in range(1, max(1, width // 64) + 1) if width % heads == 0)
