"""What a few labels are worth with a run's features, with its untrained network's, and without any network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from patchcast.backbones.capabilities import Readout
from patchcast.data.images import evenly_spaced
from patchcast.drawing.neighbors import draw_neighbors
from patchcast.evaluation.baselines import BASELINES, CONVOLUTIONS, PIXELS
from patchcast.evaluation.features import Features, extract, extract_with
from patchcast.evaluation.knn import nearest_images
from patchcast.evaluation.label_budgets import FewLabels, paired_differences
from patchcast.evaluation.labeled import Labeled
from patchcast.evaluation.protocol import OURS, UNTRAINED, points
from patchcast.files import write_figure
from patchcast.runs.run import Run
from patchcast.stages import stage

SUMMARIZED = 5
"""Labels per class of which the summary speaks."""
QUERIES, NEAREST = 8, 5
READOUT: Readout = "mean_std"

FeaturePair = tuple[Features, Features]
"""Features of the training and of the test images."""


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


def few_labels_summary(few: Mapping[str, list[FewLabels]]) -> str:
    """What few labels are worth, in one or two sentences, whichever way it went.

    >>> def row(*accuracies):
    ...     return [FewLabels(5, torch.tensor(accuracies), "same draws")]
    >>> few = {"pretrained": row(0.7, 0.8), "untrained": row(0.4, 0.5), "raw pixels": row(0.9, 0.8)}
    >>> print(few_labels_summary(few))
    With 5 labels per digit, 75.0 % of digits are recognized; untrained 45.0, raw pixels 85.0.
    Better than untrained (+30.0 points [+30.0, +30.0]); not better than raw pixels (-10.0 points [-100.0, +100.0]).
    """
    at = {name: next(row for row in rows if row.per_class == SUMMARIZED) for name, rows in few.items()}
    others = [name for name in at if name != OURS]
    better, not_better = list[str](), list[str]()
    for name in others:
        [found] = paired_differences([at[OURS]], [at[name]])
        low, high = max(found.difference.low, -1.0), min(found.difference.high, 1.0)
        words = f"{name} ({100 * found.difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}])"
        (better if low > 0 else not_better).append(words)
    verdicts = [f"better than {', '.join(better)}"] if better else []
    verdicts += [f"not better than {', '.join(not_better)}"] if not_better else []
    compared = ", ".join(f"{name} {100 * at[name].mean:.1f}" for name in others)
    verdict = "; ".join(verdicts)
    return (
        f"With {SUMMARIZED} labels per digit, {100 * at[OURS].mean:.1f} % of digits are recognized; {compared}.\n"
        f"{verdict[:1].upper()}{verdict[1:]}."
    )


def few_labels_record(few: Mapping[str, list[FewLabels]], draws: int) -> dict[str, Any]:
    """The numbers of every row as demo.json has them, which a report reads."""
    rows = {
        name: [{"per_class": row.per_class, "mean": row.mean, "std": row.std, "draws": draws} for row in rows]
        for name, rows in few.items()
    }
    gained = {
        name: {row.per_class: points(row.difference) for row in paired_differences(few[OURS], rows)}
        for name, rows in few.items()
        if name != OURS
    }
    return {"summary": few_labels_summary(few).replace("\n", " "), "few_labels": rows, "gained": gained}


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
