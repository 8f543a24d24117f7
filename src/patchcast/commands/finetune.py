"""`patchcast probe --finetune`: what a run is worth as a start, beside the same network trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from patchcast.commands.probe import labelled_for, points, write_json
from patchcast.evaluation import Interval, accuracy_interval, finetune, paired_accuracy_difference
from patchcast.recipe import Device
from patchcast.runs.network import OURS, UNTRAINED, open_network, torch_device

BATCH = 64
LAYER_DECAY = 0.65
"""From each block to the one before it, where pretraining is to be kept; MAE's for ViT-B is 0.65 to 0.75."""
PRECISION = {"cpu": None, "cuda": torch.bfloat16}


@dataclass(frozen=True)
class Finetuned:
    """Which test images a fine-tuned network told right."""

    correct: Tensor

    @property
    def accuracy(self) -> Interval:
        return accuracy_interval(self.correct)


def probe_by_finetuning(
    source: Path | str,
    epochs: int,
    *,
    data: str | None,
    limit: int | None,
    untrained: bool = False,
    device: Device = "auto",
    out: Path | None = None,
    typed: str = "",
) -> dict[str, Finetuned]:
    """Fine-tune a network and the untrained one, print a table, and write finetune.json into the run folder.

    The untrained network has nothing to keep, and learns at one rate in all its blocks.

    Args:
        epochs: passes over the labelled training images, augmented as in pretraining.
    Raises:
        ValueError: if the data has no labels, or the blocks of the network cannot be told apart.
    """
    if epochs < 1:
        raise ValueError(f"fine-tuning takes at least 1 epoch; got {epochs}")
    network = open_network(source, untrained=untrained)
    labelled = labelled_for(network, data, limit)
    _, test = labelled.loaders(network.evaluate)
    where = torch_device(device)
    networks = network.beside_its_start()
    steps = max(1, round(epochs * len(labelled.train) / BATCH))
    console, found = Console(), dict[str, Finetuned]()
    for name, backbone in networks.items():
        with console.status(f"Fine-tuning {name}: {steps:,} steps"):
            result = finetune(
                backbone,
                labelled.augmented(network.augment, steps=steps, batch_size=BATCH, seed=0),
                test,
                classes=labelled.classes,
                layer_decay=LAYER_DECAY if name == OURS else 1.0,
                device=where,
                precision=PRECISION[where],
            )
        found[name] = Finetuned(result.correct)
    console.print(table(found, labelled.told, epochs))
    if OURS in found:
        gained = paired_accuracy_difference(found[OURS].correct, found[UNTRAINED].correct)
        console.print(f"Pretraining is worth {points(gained)} on the same test images (95 % interval).")
    out = out or network.own_file("finetune.json")
    if out is not None:
        rows = {name: {"accuracy": each.accuracy._asdict()} for name, each in found.items()}
        write_json(
            out,
            {
                "command": typed,
                "network": network.name,
                "data": labelled.told,
                "epochs": epochs,
                "steps": steps,
                **rows,
            },
        )
        console.print(f"Written to {out}.")
    return found


def table(found: Mapping[str, Finetuned], source: str, epochs: int) -> Table:
    """One row for each network, in per cent."""
    shown = Table(box=SIMPLE_HEAD, title=f"Accuracy in % on {source}", title_justify="left", title_style="bold")
    shown.add_column("fine-tuned from")
    shown.add_column("accuracy", justify="right")
    shown.add_column("95 % interval", justify="right")
    for name, each in found.items():
        value, low, high = (100 * share for share in each.accuracy)
        shown.add_row(name, f"{value:.1f}", f"{low:.1f} to {high:.1f}")
    shown.caption = (
        f"All weights, {epochs} epochs in batches of {BATCH}, AdamW at 1e-3; in the pretrained network each block "
        f"learns at {LAYER_DECAY} of the rate of the next, in the untrained one all at the same."
    )
    shown.caption_justify = "left"
    return shown
