"""`patchcast demo`: pretrain on handwritten digits without their labels, and say what a few labels are then worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from patchcast.backbones.capabilities import Readout
from patchcast.commands.pretrain import pretrain
from patchcast.data.images import evenly_spaced
from patchcast.drawing.neighbors import draw_neighbors
from patchcast.evaluation.baselines import BASELINES, CONVOLUTIONS, PIXELS
from patchcast.evaluation.features import Features, extract, extract_with
from patchcast.evaluation.knn import standardized_on
from patchcast.evaluation.label_budgets import FewLabels, few_labels, paired_differences
from patchcast.evaluation.labeled import Labeled, open_labeled
from patchcast.evaluation.protocol import OURS, UNTRAINED, new_table, points
from patchcast.files import write_figure, write_json
from patchcast.recipe import Recipe
from patchcast.runs.run import Run, open_run
from patchcast.runs.run_folder import EVERYTHING
from patchcast.stages import stage

PER_CLASS, DRAWS = (1, 2, 5, 10), 20
SAID = 5
"""Labels per digit of which the last lines speak."""
QUERIES, NEAREST = 8, 5
READOUT: Readout = "mean_std"

FeaturePair = tuple[Features, Features]
"""Features of the training and of the test images."""


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
    console = Console(highlight=False)
    if (out / EVERYTHING).is_file():
        console.print(f"{out} holds a finished run; its features are compared again.")
    else:
        console.print("Pretraining on 4,000 handwritten digits without their labels: about two minutes.\n")
        pretrain(demo_recipe(out), says_next=False)
    run = open_run(out)
    if run.recipe.data != demo_recipe(out).data:
        raise ValueError(f"{out} holds another run, on {run.recipe.data}; choose another --out")
    labeled = open_labeled(run.source, channels=run.recipe.channels)
    rows = few_label_rows(run, labeled)
    few = {name: few_labels(*pair, per_class=PER_CLASS, draws=DRAWS) for name, pair in rows.items()}
    write_json(out / "demo.json", _record(few))
    with stage("Drawing nearest neighbors"):
        same = draw_nearest(run, labeled, {name: rows[name] for name in (UNTRAINED, OURS)}, out / "neighbors.png")
    if table:
        _print_table(console, few, labeled.description)
    console.print(f"\n{summary(few)}")
    console.print(
        f"Of the {NEAREST} nearest images of a digit, {same[OURS]:.0%} show the same digit, and "
        f"{same[UNTRAINED]:.0%} before training."
    )
    pictures = [out / "reconstructions.png", out / "neighbors.png"]
    links = " and ".join(f"[link={picture.resolve().as_uri()}]{picture}[/link]" for picture in pictures)
    console.print(f"Look at {links}. Next: [bold]patchcast report {out}[/]", soft_wrap=True)


def few_label_rows(run: Run, labeled: Labeled) -> dict[str, FeaturePair]:
    """Features of the run, of its untrained network, and of baselines without training."""
    rows: dict[str, FeaturePair] = {}
    networks = {OURS: run.pretrainer.backbone, UNTRAINED: run.untrained().backbone}
    for name, backbone in networks.items():
        with stage(f"Features of the {name} network"):
            rows[name] = _pair(extract(backbone, part, readout=READOUT) for part in labeled.loaders(run.evaluation))
    for name in (PIXELS, CONVOLUTIONS):
        model = BASELINES[name](labeled.train.channels)
        with stage(f"Features: {name}"):
            rows[name] = _pair(extract_with(model, part) for part in labeled.loaders(run.evaluation))
    return rows


def _pair(features: Iterable[Features]) -> FeaturePair:
    train, test = features
    return train, test


def summary(few: Mapping[str, list[FewLabels]]) -> str:
    """What few labels are worth, in one or two sentences, whichever way it went.

    >>> def row(*accuracies):
    ...     return [FewLabels(5, torch.tensor(accuracies), "same draws")]
    >>> print(summary({"pretrained": row(0.7, 0.8), "untrained": row(0.4, 0.5), "raw pixels": row(0.9, 0.8)}))
    With 5 labels per digit, 75.0 % of digits are recognized; untrained 45.0, raw pixels 85.0.
    Better than untrained (+30.0 points [+30.0, +30.0]); not better than raw pixels (-10.0 points [-100.0, +100.0]).
    """
    at = {name: next(row for row in rows if row.per_class == SAID) for name, rows in few.items()}
    others = [name for name in at if name != OURS]
    better, not_better = list[str](), list[str]()
    for name in others:
        [found] = paired_differences([at[OURS]], [at[name]])
        low, high = max(found.difference.low, -1.0), min(found.difference.high, 1.0)
        words = f"{name} ({100 * found.difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}])"
        (better if low > 0 else not_better).append(words)
    told = [f"better than {', '.join(better)}"] if better else []
    told += [f"not better than {', '.join(not_better)}"] if not_better else []
    compared = ", ".join(f"{name} {100 * at[name].mean:.1f}" for name in others)
    verdict = "; ".join(told)
    return (
        f"With {SAID} labels per digit, {100 * at[OURS].mean:.1f} % of digits are recognized; {compared}.\n"
        f"{verdict[:1].upper()}{verdict[1:]}."
    )


def draw_nearest(run: Run, labeled: Labeled, rows: Mapping[str, FeaturePair], out: Path) -> dict[str, float]:
    """Draw the nearest training images of some test images by each network.

    Returns:
        the share of nearest images of the same class, over all test images, by network.
    """
    places = evenly_spaced(len(labeled.test), QUERIES)
    shown, share = {}, {}
    for name, (train, test) in rows.items():
        nearest = nearest_images(train, test, NEAREST)
        share[name] = float((train.labels[nearest] == test.labels[:, None]).double().mean())
        images = torch.stack([torch.stack([labeled.train[int(i)].image for i in nearest[place]]) for place in places])
        title = "before training" if name == UNTRAINED else "after pretraining"
        shown[f"{title}: {share[name]:.0%} the same digit"] = images, train.labels[nearest[places]]
    queries = torch.stack([labeled.test[place].image for place in places])
    caption = (
        "Left: held-out digits, evenly spaced in the test set. Right: their nearest training images, by the cosine of "
        "features.\nRed frames: another digit. Percentages are over all 1,000 held-out digits."
    )
    write_figure(draw_neighbors(queries, test.labels[places], shown, caption=caption), out)
    return share


def nearest_images(train: Features, test: Features, count: int) -> Int[Tensor, "N K"]:
    """The `count` training images that are nearest to each test image, by the cosine of standardized features."""
    fitted, judged = standardized_on(train, test)

    def unit(features: Features) -> Float[Tensor, "N D"]:
        return F.normalize(features.x, dim=1)

    return (unit(judged) @ unit(fitted).T).topk(count, dim=1).indices


def _print_table(console: Console, few: Mapping[str, list[FewLabels]], description: str) -> None:
    table = new_table(description, "labels per digit", *map(str, PER_CLASS))
    for name, rows in few.items():
        half = [(row.interval.high - row.interval.low) / 2 for row in rows]
        table.add_row(name, *(f"{100 * row.mean:.1f} ± {100 * by:.1f}" for row, by in zip(rows, half, strict=True)))
    table.caption = f"± half of the 95 % interval of the mean over {DRAWS} draws of the labeled images."
    console.print(table)


def _record(few: Mapping[str, list[FewLabels]]) -> dict[str, Any]:
    rows = {
        name: [{"per_class": row.per_class, "mean": row.mean, "std": row.std, "draws": DRAWS} for row in rows]
        for name, rows in few.items()
    }
    gained = {
        name: {row.per_class: points(row.difference) for row in paired_differences(few[OURS], rows)}
        for name, rows in few.items()
        if name != OURS
    }
    return {"summary": summary(few).replace("\n", " "), "few_labels": rows, "gained": gained}
