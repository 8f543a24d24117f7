"""Rows of a comparison as a table in the terminal and as a parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from patchcast.comparison.rows import OTHER, Row
from patchcast.data.names import escape
from patchcast.evaluation import Interval, accuracy_interval
from patchcast.evaluation.baselines import BASELINES
from patchcast.evaluation.labeled import Labeled
from patchcast.evaluation.protocol import new_table, percent
from patchcast.files import write_whole
from patchcast.runs.network import OURS, UNTRAINED


def results_table(rows: Sequence[Row], description: str) -> Table:
    """One row per network or baseline, in per cent, with 95 % intervals."""
    shown = new_table(description, "network", "kNN", "linear", "RankMe")
    for row in rows:
        rank = "" if row.scores.rankme is None else f"{row.scores.rankme:.1f}"
        shown.add_row(row.label, f"{100 * row.scores.knn.accuracy:.1f}", percent(row.scores.accuracy), rank)
    own = [f"{row.label} {percent(row.own)}" for row in rows if row.own is not None]
    classifiers = f" Own classifiers: {'; '.join(own)}." if own else ""
    shown.caption = escape(
        "Linear classifier on all labels. 95 % intervals over the test images; differences on the same test images and "
        f"on the same draws of labels. They do not cover the seed.{classifiers}"
    )
    return shown


def write_rows(rows: Sequence[Row], labeled: Labeled, out: Path) -> None:
    """Write every number of every row; accuracies are in [0, 1]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda unfinished: pq.write_table(pa.Table.from_pylist(_plain(rows, labeled)), unfinished))


def _plain(rows: Sequence[Row], labeled: Labeled) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    for row in rows:
        scores, recipe = row.scores, row.recipe if row.kind not in BASELINES else None
        is_ours = row.kind in (OURS, OTHER)
        values: dict[str, Any] = {
            "run": str(row.run),
            "network": row.label,
            "kind": row.kind,
            "method": recipe.method if recipe and is_ours else None,
            "model": recipe.model if recipe else row.label if is_ours else None,
            "seed": recipe.seed if recipe else None,
            "steps": recipe.steps if recipe and row.kind != UNTRAINED else None,
            "batch_size": recipe.batch_size if recipe and row.kind != UNTRAINED else None,
            "lr": recipe.lr if recipe and is_ours else row.rate,
            "data": labeled.description,
            "train_images": len(labeled.train),
            "test_images": len(labeled.test),
            "k": scores.knn.k,
            "knn_standardized": scores.knn.standardized,
            "strength": scores.linear.strength,
            "rankme": scores.rankme,
            "alpha_req": scores.alpha_req,
        }
        intervals: dict[str, Interval | None] = {
            "knn": accuracy_interval(scores.knn.correct),
            "linear": scores.accuracy,
            "over_untrained": row.gained,
            "own_classifier": row.own,
            **{f"few_{few.per_class}": few.interval for few in scores.few},
        }
        for name, interval in intervals.items():
            value, low, high = (None, None, None) if interval is None else interval
            values |= {name: value, f"{name}_low": low, f"{name}_high": high}
        table.append(values)
    return table
