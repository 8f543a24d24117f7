"""`patchcast probe --attentive`: AIM's own probe, beside the same network before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from patchcast.backbones import Backbone
from patchcast.commands.probe import feature_cache, labelled_for, points, write_json
from patchcast.evaluation import (
    Interval,
    accuracy_interval,
    attentive_probe,
    extract_layers,
    extract_tokens,
    paired_accuracy_difference,
)
from patchcast.evaluation.block_choice import best_blocks, last_blocks
from patchcast.evaluation.features import Features, Loader
from patchcast.recipe import Device
from patchcast.runs.network import OURS, UNTRAINED, open_network, torch_device

Choice = Literal["last", "best"]
EPOCHS = 20


@dataclass(frozen=True)
class Attentive:
    """What the attentive probe found with the mean of some blocks.

    Attributes:
        correct: which test images were right.
        choices: held-out accuracy, by a linear classifier, of every choice of blocks; empty for the last ones.
    """

    correct: Tensor
    blocks: tuple[int, ...]
    lr: float
    choices: dict[tuple[int, ...], float]

    @property
    def accuracy(self) -> Interval:
        return accuracy_interval(self.correct)


def probe_attentively(
    source: Path | str,
    choice: Choice,
    *,
    data: str | None,
    limit: int | None,
    untrained: bool = False,
    device: Device = "auto",
    cached: bool = True,
    out: Path | None = None,
    typed: str = "",
) -> dict[str, Attentive]:
    """Probe a network and the untrained one, print a table, and write attentive.json into the run folder.

    Raises:
        ValueError: if the data has no labels, or the backbone no blocks to choose from.
    """
    network = open_network(source, untrained=untrained)
    labelled = labelled_for(network, data, limit)
    train, test = labelled.loaders(network.evaluate)
    where, cache = torch_device(device), feature_cache() if cached else None
    networks = network.beside_its_start()
    console, found = Console(), dict[str, Attentive]()
    for name, backbone in networks.items():
        with console.status(f"Probing {name}"):
            found[name] = attentive(backbone, train, test, choice, device=where, cache=cache)
        backbone.cpu()
    console.print(table(found, labelled.told))
    if OURS in found:
        gained = paired_accuracy_difference(found[OURS].correct, found[UNTRAINED].correct)
        console.print(f"Pretraining is worth {points(gained)} on the same test images (95 % interval).")
    out = out or network.own_file("attentive.json")
    if out is not None:
        write_json(out, {"command": typed, "network": network.name, **_plain(found, labelled.told, choice)})
        console.print(f"Written to {out}.")
    return found


def attentive(
    backbone: Backbone, train: Loader, test: Loader, choice: Choice, *, device: str = "cpu", cache: Path | None = None
) -> Attentive:
    """AIM's probe on the mean of six blocks: the last, or those that held-out training images choose.

    Units are not kept in the cache: those of 5,000 images of a ViT-Tiny are 250 MB.
    """
    layers: dict[int, Features] = extract_layers(backbone, train, device=device, cache=cache)
    blocks, choices = (last_blocks(len(layers)), {}) if choice == "last" else best_blocks(layers)
    fitted = extract_tokens(backbone, train, blocks=blocks, device=device)
    judged = extract_tokens(backbone, test, blocks=blocks, device=device)
    result = attentive_probe(fitted, judged, heads=heads_of(fitted.x.shape[2]), epochs=EPOCHS, device=device)
    return Attentive(result.correct, blocks, result.lr, choices)


def heads_of(width: int) -> int:
    """Attention heads of 64 channels or a little more.

    >>> heads_of(192), heads_of(200), heads_of(48)
    (3, 2, 1)
    """
    return max(heads for heads in range(1, max(1, width // 64) + 1) if width % heads == 0)


def table(found: Mapping[str, Attentive], source: str) -> Table:
    """One row for each network, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {source}", title_justify="left", title_style="bold")
    shown.add_column("attentive probe")
    shown.add_column("mean of blocks", justify="right")
    shown.add_column("accuracy", justify="right")
    shown.add_column("95 % interval", justify="right")
    for name, each in found.items():
        accuracy = each.accuracy
        interval = f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
        shown.add_row(name, f"{each.blocks[0]} to {each.blocks[-1]}", f"{100 * accuracy.value:.1f}", interval)
    shown.caption = f"One learnt query; {EPOCHS} epochs; the learning rate chosen on held-out training images."
    shown.caption_justify = "left"
    return shown


def _plain(found: Mapping[str, Attentive], source: str, choice: Choice) -> dict[str, object]:
    rows = {
        name: {
            "accuracy": each.accuracy._asdict(),
            "blocks": list(each.blocks),
            "lr": each.lr,
            "held_out": {f"{blocks[0]}-{blocks[-1]}": value for blocks, value in each.choices.items()},
        }
        for name, each in found.items()
    }
    return {"data": source, "choice": choice, **rows}
