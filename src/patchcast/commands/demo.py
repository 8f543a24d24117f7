"""`patchcast demo`: pretrain on handwritten digits without their labels, and say what a few labels are then worth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from patchcast.commands.pretrain import pretrain
from patchcast.comparison.few_labels_rows import (
    NEAREST,
    draw_nearest,
    few_label_rows,
    few_labels_record,
    few_labels_summary,
)
from patchcast.data.names import escape
from patchcast.evaluation.label_budgets import FewLabels, few_labels
from patchcast.evaluation.labeled import open_labeled
from patchcast.evaluation.protocol import OURS, UNTRAINED, new_table
from patchcast.files import write_json
from patchcast.recipe import Recipe
from patchcast.runs.run import open_run
from patchcast.runs.run_folder import EVERYTHING
from patchcast.stages import stage

PER_CLASS, DRAWS = (1, 2, 5, 10), 20


def demo_recipe(out: Path) -> Recipe:
    """A small ViT on 4,000 digits of 28x28 pixels, in patches of 7x7."""
    return Recipe(
        method="mae",
        model="vit_tiny_patch16_224",
        data="mnist-5k",
        out=out,
        model_args={"depth": 4, "embed_dim": 128, "num_heads": 4},
        # Most patches of a digit are plain black: normalizing them would ask for noise.
        method_args={"mask_ratio": 0.65, "decoder_width": 64, "decoder_depth": 1, "normalize": False},
        image_size=(28, 28),
        patch_size=7,
        # Crops and other proportions than a digit's own cost 8 points with 5 labels per digit.
        crop_scale=(1.0, 1.0),
        clip=3.0,
        steps=2000,
        precision="fp32",  # measuring would take longer than it saves
        batch_size=64,
        lr=3e-3,
        eval_every=400,
    )


def demo(out: Path, *, table: bool = False) -> None:
    """Pretrain on digits without their labels, and compare features with few labels and nearest neighbors.

    Args:
        table: print every number, and not only a summary.
    """
    # For threads that wait for each other the network is too small: where other work took one of two cores, a second
    # thread made of 1,700 images a second 10 to 280.
    torch.set_num_threads(1)
    console = Console(highlight=False)
    if (out / EVERYTHING).is_file():
        console.print(f"{escape(out)} holds a finished run; its features are compared again.")
    else:
        console.print("Pretraining on 4,000 handwritten digits without their labels: about two minutes.\n")
        pretrain(demo_recipe(out), says_next=False)
    run = open_run(out)
    if run.recipe.data != demo_recipe(out).data:
        raise ValueError(f"{out} holds another run, on {run.recipe.data}; choose another --out")
    labeled = open_labeled(run.source, channels=run.recipe.channels)
    rows = few_label_rows(run, labeled)
    few = {name: few_labels(*pair, per_class=PER_CLASS, draws=DRAWS) for name, pair in rows.items()}
    write_json(out / "demo.json", few_labels_record(few, DRAWS))
    with stage("Drawing nearest neighbors"):
        same = draw_nearest(run, labeled, {name: rows[name] for name in (UNTRAINED, OURS)}, out / "neighbors.png")
    if table:
        _print_table(console, few, labeled.description)
    console.print(f"\n{few_labels_summary(few)}")
    console.print(
        f"Of the {NEAREST} nearest images of a digit, {same[OURS]:.0%} show the same digit, and "
        f"{same[UNTRAINED]:.0%} before training."
    )
    pictures = [out / "reconstructions.png", out / "neighbors.png"]
    links = " and ".join(f"[link={picture.resolve().as_uri()}]{escape(picture)}[/link]" for picture in pictures)
    console.print(f"Look at {links}. Next: [bold]patchcast report {escape(shlex.quote(str(out)))}[/]", soft_wrap=True)


def _print_table(console: Console, few: Mapping[str, list[FewLabels]], description: str) -> None:
    table = new_table(description, "labels per digit", *map(str, PER_CLASS))
    for name, rows in few.items():
        half = [(row.interval.high - row.interval.low) / 2 for row in rows]
        table.add_row(name, *(f"{100 * row.mean:.1f} ± {100 * by:.1f}" for row, by in zip(rows, half, strict=True)))
    table.caption = f"± half of the 95 % interval of the mean over {DRAWS} draws of the labeled images."
    console.print(table)
