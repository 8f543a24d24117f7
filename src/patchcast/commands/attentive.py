"""`patchcast probe --attentive`: AIM's own probe, beside the same network before training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from patchcast.backbones import Backbone
from patchcast.commands.build import build
from patchcast.commands.folder import open_run
from patchcast.commands.probe import OURS, UNTRAINED, labelled_loaders
from patchcast.evaluation import Interval, accuracy_interval, attentive_probe, extract_layers, extract_tokens
from patchcast.evaluation.blocks import best_blocks, last_blocks
from patchcast.evaluation.features import Features, Loader

Choice = Literal["last", "best"]
EPOCHS = 20


@dataclass(frozen=True)
class Attentive:
    """What the attentive probe found with the mean of some blocks.

    Attributes:
        choices: held-out accuracy, by a linear classifier, of every choice of blocks; empty for the last ones.
    """

    accuracy: Interval
    blocks: tuple[int, ...]
    lr: float
    choices: dict[tuple[int, ...], float]


def probe_attentively(run: Path, choice: Choice, *, data: str | None, limit: int | None) -> dict[str, Attentive]:
    """Probe a run's network and the untrained one, print a table, and write attentive.json into the run folder.

    Raises:
        ValueError: if the data has no labels, or the backbone no blocks to choose from.
    """
    recipe, pretrainer = open_run(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test, source = labelled_loaders(recipe, data or recipe.data, limit)
    console, found = Console(), dict[str, Attentive]()
    for name, backbone in {OURS: pretrainer.backbone, UNTRAINED: build(recipe).backbone}.items():
        with console.status(f"Probing {name}"):
            found[name] = attentive(backbone, train, test, choice, device=device)
    console.print(table(found, source))
    (run / "attentive.json").write_text(json.dumps(_plain(found, source, choice), indent=2) + "\n")
    console.print(f"Written to {run / 'attentive.json'}.")
    return found


def attentive(backbone: Backbone, train: Loader, test: Loader, choice: Choice, *, device: str = "cpu") -> Attentive:
    """AIM's probe on the mean of six blocks: the last, or those that held-out training images choose."""
    layers: dict[int, Features] = extract_layers(backbone, train, device=device)
    blocks, choices = (last_blocks(len(layers)), {}) if choice == "last" else best_blocks(layers)
    fitted = extract_tokens(backbone, train, blocks=blocks, device=device)
    judged = extract_tokens(backbone, test, blocks=blocks, device=device)
    result = attentive_probe(fitted, judged, heads=heads_of(fitted.x.shape[2]), epochs=EPOCHS, device=device)
    return Attentive(accuracy_interval(result.correct), blocks, result.lr, choices)


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
